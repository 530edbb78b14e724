"""Held-out people: who is drawn at every validation of a run, from the same noise each time.

A data module may offer `held_out_people(num_people, num_prompts)` itself. Otherwise avatars are asked for attributes
that their reference image lacks, and the true answer is rendered; of other data sets, people are taken from the
validation images, and prompts are given.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from promptnet.datasets.avatars.captions import caption
from promptnet.datasets.avatars.module import AvatarDataModule
from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, Avatar, changed, sample_attributes, sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.datasets.stream import sample_rng, sample_seed
from promptnet.models.placeholders import find_placeholders

DEFAULT_PROMPTS = ("a photo of S*", "a photo of S* wearing a hat", "an oil painting of S*", "a photo of S* on a beach")


@dataclass(frozen=True)
class EvalPrompt:
    """One image to draw.

    Args:
        prompt: holds S*.
        seed: of the noise it starts from.
        truth: the true answer, where the data knows it.
        asked: attribute fields that the prompt asks for, with their values, where the data has fields.
    """

    prompt: str
    seed: int
    truth: Image.Image | None = None
    asked: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOutPerson:
    """One person of the validation data.

    Args:
        reference: the only image that the encoder is shown.
        eval_prompts: what is drawn.
        other: another image of the same person, where there is one.
    """

    reference: Image.Image
    eval_prompts: tuple[EvalPrompt, ...]
    other: Image.Image | None = None

    def compared(self) -> list[Image.Image | None]:
        """For each ask a true image of the person that is not the reference: the answer, or any other."""
        return [self.other if eval_prompt.truth is None else eval_prompt.truth for eval_prompt in self.eval_prompts]


def held_out_people(
    datamodule: Any, num_people: int, num_prompts: int, seed: int, prompts: Sequence[str] | None = None
) -> list[HeldOutPerson]:
    """The people of a data module's validation set that a run draws.

    Args:
        datamodule: of the run.
        num_people: how many.
        num_prompts: images of each.
        seed: of people, prompts and noise.
        prompts: sentences with S*, `num_prompts` of which are drawn; for avatars, None asks for attributes.

    Raises:
        ValueError: the data module has no validation images to take people from, or a prompt lacks S*.
    """
    for prompt in prompts or ():
        found = set(find_placeholders(prompt))
        if "S*" not in found:
            raise ValueError(f"the validation prompt {prompt!r} has no S* in it: write where the person goes")
        if found != {"S*"}:
            raise ValueError(f"the validation prompt {prompt!r} mentions somebody else than S*: write S* alone")
    if hasattr(datamodule, "held_out_people"):
        return datamodule.held_out_people(num_people, num_prompts)
    if isinstance(datamodule, AvatarDataModule):
        how: dict[str, Any] = {"size_px": datamodule.size_px, "stream": datamodule.seed, "prompts": prompts}
        return avatar_people(num_people, num_prompts, seed, **how)
    sentences = list(prompts or DEFAULT_PROMPTS)[:num_prompts]
    pairs = getattr(datamodule, "validation", None)
    if getattr(pairs, "fixed", None):
        return people_of_pairs(pairs, num_people, sentences, seed)
    raise ValueError(
        f"this {type(datamodule).__name__} holds no validation images, so there is nobody to draw: give it some, or "
        "leave ValidationImages and ValidationMeasures out of trainer.callbacks"
    )


def avatar_people(
    num_people: int,
    num_prompts: int,
    seed: int = 0,
    size_px: int = 64,
    *,
    stream: int = 0,
    prompts: Sequence[str] | None = None,
) -> list[HeldOutPerson]:
    """Return validation people of the endless stream, asked for attributes that their reference lacks.

    What a prompt leaves out, the true answer has from the reference.

    Args:
        num_people: how many.
        num_prompts: images of each.
        seed: of prompts and noise.
        size_px: side of the images.
        stream: seed of the people.
        prompts: sentences with S* to draw in place of attributes; nobody knows their true answers.
    """
    avatars = [sample_avatar(stream, place, "validation") for place in range(num_people)]
    if not prompts:
        return [_avatar_person(avatar, place, num_prompts, seed, size_px) for place, avatar in enumerate(avatars)]
    opened = [[render_avatar(shown, size_px) for shown in (avatar, _otherwise(avatar, seed))] for avatar in avatars]
    return [_held_out_person(images, place, prompts[:num_prompts], seed) for place, images in enumerate(opened)]


def _otherwise(avatar: Avatar, seed: int) -> Avatar:
    """The same person with other attributes."""
    rng = random.Random(f"held out {seed} {avatar}")
    return Avatar(avatar.identity, sample_attributes(avatar.identity.style, rng))


def _avatar_person(avatar: Avatar, place: int, num_prompts: int, seed: int, size_px: int) -> HeldOutPerson:
    rng = sample_rng(seed, place, "held-out person")
    eval_prompts = tuple(_avatar_prompt(rng, avatar, size_px) for _ in range(num_prompts))
    return HeldOutPerson(render_avatar(avatar, size_px), eval_prompts)


def _avatar_prompt(rng: random.Random, avatar: Avatar, size_px: int) -> EvalPrompt:
    """Two or three fields with words that the reference does not have."""
    fields, others = rng.sample(ATTRIBUTE_FIELDS, rng.randint(2, 3)), avatar.attributes
    while any(others.record()[field] == avatar.record()[field] for field in fields):
        others = sample_attributes(avatar.identity.style, rng)
    truth = Avatar(avatar.identity, changed(avatar.attributes, others, set(fields)))
    asked = {field: truth.record()[field] for field in fields}
    prompt = caption(truth.record(), subject="S*", fields=fields)
    return EvalPrompt(prompt, rng.getrandbits(63), render_avatar(truth, size_px), asked)


def people_of_pairs(pairs: Any, num_people: int, prompts: Sequence[str], seed: int = 0) -> list[HeldOutPerson]:
    """The first people of the fixed pairs that a prepared set is validated on (`promptnet.datasets.faces.pairs`)."""
    seen: set[int] = set()
    people: list[list[int]] = []
    for row in pairs.fixed:
        if row not in seen:
            people.append([row, *pairs.partners.of(row)])
            seen.update(people[-1])
    chosen = _with_two_first(people)[:num_people]
    opened = [[pairs.image(row, False, pairs.sizes.square, None) for row in rows[:2]] for rows in chosen]
    return [_held_out_person(images, place, prompts, seed) for place, images in enumerate(opened)]


def _with_two_first(people: Iterable[list[int]]) -> list[list[int]]:
    return sorted(people, key=lambda images: len(images) < 2)


def _held_out_person(images: list[Image.Image], place: int, prompts: Sequence[str], seed: int) -> HeldOutPerson:
    eval_prompts = tuple(
        EvalPrompt(prompt, sample_seed(seed, place, f"held-out ask {i}")) for i, prompt in enumerate(prompts)
    )
    return HeldOutPerson(images[0], eval_prompts, images[1] if len(images) > 1 else None)
