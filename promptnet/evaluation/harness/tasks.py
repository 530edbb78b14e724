"""Tasks of every method: held-out people, one reference image each, and prompts for other attributes.

People come from an endless stream that nobody enumerated. A task list is a function of its arguments; fewer people or
prompts are a prefix of more.
"""

import random
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from promptnet.datasets.avatars.captions import NEUTRAL_PROMPT, caption
from promptnet.datasets.avatars.frames import Frame
from promptnet.datasets.avatars.person import (
    ATTRIBUTE_FIELDS,
    Attributes,
    Avatar,
    Identity,
    World,
    changed,
    sample_attributes,
    sample_avatar,
    sample_identity,
)
from promptnet.datasets.avatars.render import render, render_avatar

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

PLACEHOLDER = "S*"
CLASS_PHRASE = "a person"
"""The class phrase in the base model's captions."""

FRAMES: dict[str, Frame] = {
    "plain": Frame(),
    "zoom-0.7": Frame(zoom=0.7),
    "zoom-0.85": Frame(zoom=0.85),
    "zoom-1.2": Frame(zoom=1.2),
    "zoom-1.4": Frame(zoom=1.4),
    "shift": Frame(shift_x=0.2),
    "mirrored": Frame(mirrored=True),
    "jpeg-60": Frame(jpeg_quality=60),
    "border": Frame(border=0.1, border_color="#000000"),
    "noise": Frame(noise=8.0),
    "small": Frame(small_px=40),
}
"""How reference images may come to us: what robustness is measured in."""

_TRAINING_SEED, _HELD_OUT_SEED = 0, 10_000  # streams of trainings; of other people than trainings validate on


@dataclass(frozen=True)
class EvalPrompt:
    """One image to generate."""

    prompt: str
    """The prompt, with `S*` for the subject unless it describes the person in words."""
    attributes: Attributes
    """Attributes of the true answer: the requested values, and the reference's for what the prompt leaves out."""
    fields: tuple[str, ...]
    """The attribute fields in the prompt."""
    seed: int
    """Seed of all noise in this image, the same for every method."""

    def asked(self) -> dict[str, str]:
        """Return the requested fields with their values."""
        return {field: value for field, value in self.attributes.record().items() if field in self.fields}

    def kept(self) -> dict[str, str]:
        """Return the fields that the prompt leaves out, with the reference's values."""
        return {field: value for field, value in self.attributes.record().items() if field not in self.fields}


@dataclass(frozen=True)
class Person:
    """One held-out person: the attributes of the reference image, its frame, and the prompts."""

    index: int
    identity: Identity
    reference: Attributes
    eval_prompts: tuple[EvalPrompt, ...]
    seed: int
    """Seed of the noise in per-user tuning."""
    frame: Frame = FRAMES["plain"]
    """How the reference image was made."""

    def reference_image(self, size_px: int) -> Image.Image:
        """Render the only image of the person that a method gets."""
        framed = self.frame(render(self.identity, self.reference, 2 * size_px), self.reference.background)
        return framed.resize((size_px, size_px), Image.Resampling.LANCZOS)

    def truths(self) -> list[Avatar]:
        """Return the exact records of the true answers, prompt by prompt."""
        return [Avatar(self.identity, eval_prompt.attributes) for eval_prompt in self.eval_prompts]

    def true_images(self, size_px: int) -> list[Image.Image]:
        """Render the true answers, prompt by prompt."""
        return [render_avatar(truth, size_px) for truth in self.truths()]

    def described(self) -> "Person":
        """Return the same with prompts that say in words who it is, and all that is to stay as it was."""
        said = zip(self.eval_prompts, self.truths(), strict=True)
        prompts = tuple(replace(eval_prompt, prompt=caption(truth.record())) for eval_prompt, truth in said)
        return replace(self, eval_prompts=prompts)


def make_people(
    split: Split,
    people: int,
    prompts: int,
    seed: int = 0,
    *,
    world: World = "known",
    frame: str = "plain",
    neutral_first: bool = False,
) -> list[Person]:
    """Return the tasks of the comparison: every requested value differs from the reference, so copying it scores 0.

    Args:
        split: "validation" for choices, "test" for results, "train" for the first people of the trainings' stream.
        people: how many; a split has no end.
        prompts: number a person, each with two to four of the attribute fields.
        seed: decides people, references, prompts and noise (of the split "train" not who it is).
        world: "known" is what trainings draw from; "style", "hair" and "color" are what none of them has.
        frame: how references were made, one of `FRAMES`.
        neutral_first: the first prompt of each person names nothing; its true answer is the reference.

    Raises:
        ValueError: fewer than one person or prompt, or a split, world or frame that is not known.
    """
    _check(split, people, prompts, frame)
    how = {"world": world, "frame": FRAMES[frame], "neutral_first": neutral_first}
    return [_person(split, index, prompts, seed, **how) for index in range(people)]


def make_person(split: Split, index: int, prompts: int, seed: int = 0) -> Person:
    """Return one of the people of `make_people`, counted from 0, without those before.

    Raises:
        ValueError: an index below 0, no prompt, or a split that is not known.
    """
    if index < 0:
        raise ValueError(f"index={index} of a person must be 0 or more")
    _check(split, 1, prompts, "plain")
    return _person(split, index, prompts, seed)


def make_described_people(
    split: Split, people: int, prompts: int, seed: int = 0, *, world: World = "known"
) -> list[Person]:
    """Return tasks for the base model alone: full captions of unseen people, with every field and no reference.

    Raises:
        ValueError: as `make_people`.
    """
    _check(split, people, prompts, "plain")
    return [_described(split, index, prompts, seed, world) for index in range(people)]


def _check(split: str, people: int, prompts: int, frame: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}: no others have tasks")
    if people < 1:
        raise ValueError(f"people={people}: a comparison needs 1 person at least")
    if prompts < 1:
        raise ValueError(f"prompts={prompts}: every person needs 1 prompt at least")
    if frame not in FRAMES:
        raise ValueError(f"frame={frame!r} is not one of {', '.join(FRAMES)}")


def _stream(split: Split, seed: int) -> int:
    return _TRAINING_SEED if split == "train" else _HELD_OUT_SEED + seed


def _person(
    split: Split,
    index: int,
    prompts: int,
    seed: int,
    *,
    world: World = "known",
    frame: Frame = FRAMES["plain"],
    neutral_first: bool = False,
) -> Person:
    avatar = sample_avatar(_stream(split, seed), index, split, world)
    rng = random.Random(f"person {seed} {split} {world} {index}")
    who = avatar.identity
    reference = sample_attributes(who.style, rng) if split == "train" else avatar.attributes
    noise = rng.getrandbits(63)
    eval_prompts = [_eval_prompt(rng, who.style, reference) for _ in range(prompts)]
    if neutral_first:
        eval_prompts[0] = EvalPrompt(NEUTRAL_PROMPT, reference, (), eval_prompts[0].seed)
    return Person(index, who, reference, tuple(eval_prompts), noise, frame)


def _eval_prompt(rng: random.Random, style: str, reference: Attributes) -> EvalPrompt:
    """Return a prompt with two to four fields, each with a value that is not the reference's."""
    chosen: set[str] = set(rng.sample(ATTRIBUTE_FIELDS, rng.randint(2, 4)))
    fields = tuple(field for field in ATTRIBUTE_FIELDS if field in chosen)
    attributes = changed(reference, _others(rng, style, reference, fields), chosen)
    prompt = caption(attributes.record(), subject=PLACEHOLDER, fields=fields)
    return EvalPrompt(prompt, attributes, fields, rng.getrandbits(63))


def _others(rng: random.Random, style: str, reference: Attributes, fields: tuple[str, ...]) -> Attributes:
    """Draw attributes until every one of these fields has another word than the reference's."""
    known = reference.record()
    while True:
        others = sample_attributes(style, rng)
        words = others.record()
        if all(words[field] != known[field] for field in fields):
            return others


def _described(split: Split, index: int, prompts: int, seed: int, world: World) -> Person:
    who = sample_identity(_stream(split, seed), index, split, world)
    rng = random.Random(f"described {seed} {split} {world} {index}")
    avatars = [Avatar(who, sample_attributes(who.style, rng)) for _ in range(prompts)]
    eval_prompts = tuple(
        EvalPrompt(caption(avatar.record()), avatar.attributes, ATTRIBUTE_FIELDS, rng.getrandbits(63))
        for avatar in avatars
    )
    return Person(index, who, avatars[0].attributes, eval_prompts, seed)
