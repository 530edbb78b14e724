"""Tasks of the evaluation of edits: which edits, of which images.

Images come from seeds (the base model generates them from the neutral prompt), are real renders of held-out people, or
show subjects made from such renders. A group of images is generated in one batch.
"""

import random
from dataclasses import dataclass
from typing import Literal

from promptnet.datasets.avatars.render import Attributes, AvatarRecord, Split, identities, sample_attributes

Source = Literal["seeds", "renders", "subjects"]

NEUTRAL = "a portrait of a person"
NEUTRAL_SUBJECT = "a portrait of S*"


@dataclass(frozen=True)
class Edit:
    """One attribute to change."""

    name: str
    styled: str
    """The neutral prompt with the attribute."""
    field: str
    value: str

    def applied(self, avatar: AvatarRecord) -> AvatarRecord:
        """Return the same person with only that attribute changed: the true answer."""
        changed = Attributes(**{**avatar.attributes.record(), self.field: self.value})
        return AvatarRecord(avatar.identity, changed)


EDITS: dict[str, Edit] = {
    edit.name: edit
    for edit in (
        Edit("happy", "a happy portrait of a person", "expression", "happy"),
        Edit("sad", "a sad portrait of a person", "expression", "sad"),
        Edit("surprised", "a surprised portrait of a person", "expression", "surprised"),
        Edit("glasses", f"{NEUTRAL}, wearing glasses", "glasses", "glasses"),
        Edit("sunglasses", f"{NEUTRAL}, wearing sunglasses", "glasses", "sunglasses"),
        Edit("pink-background", f"{NEUTRAL}, on a pink background", "background", "pink"),
        Edit("navy-background", f"{NEUTRAL}, on a navy background", "background", "navy"),
        Edit("t-shirt", f"{NEUTRAL}, wearing a t-shirt", "clothes", "t-shirt"),
        Edit("red-clothes", f"{NEUTRAL}, wearing red clothes", "clothes_color", "red"),
    )
}


def chosen_edits(names: list[str] | None) -> list[Edit]:
    """Return the edits of these names; None is all.

    Raises:
        ValueError: unknown edit.
    """
    for name in names or []:
        if name not in EDITS:
            raise ValueError(f"there is no edit {name!r}: choose from {', '.join(EDITS)}")
    return [EDITS[name] for name in names or EDITS]


@dataclass(frozen=True)
class EvalPrompt:
    """One image to edit."""

    seed: int
    """Seed of its noise."""
    avatar: AvatarRecord | None = None
    """The person in a real render or in a subject's reference image."""


@dataclass(frozen=True)
class Group:
    """Images that are generated in one batch."""

    index: int
    source: Source
    eval_prompts: tuple[EvalPrompt, ...]

    def avatars(self) -> list[AvatarRecord]:
        """Return the people of renders and subjects."""
        return [eval_prompt.avatar for eval_prompt in self.eval_prompts if eval_prompt.avatar is not None]


def make_groups(source: Source, split: Split, count: int, seed: int = 0, size: int = 8) -> list[Group]:
    """Return `count` images in groups; fewer images are a prefix of more.

    Args:
        source: of the images.
        split: of the people in them.
        count: number of images.
        seed: decides people, attributes and noise.
        size: images in a group.

    Raises:
        ValueError: more people than the split has, or a negative number of images.
    """
    people = list(identities(split))
    if not 0 <= count <= (len(people) if source != "seeds" else 10_000):
        raise ValueError(f"{source}={count}: the {split} split has 0 to {len(people)}")
    random.Random(f"edited people {seed}").shuffle(people)
    eval_prompts = []
    for index in range(count):
        rng = random.Random(f"edited {source} {seed} {split} {index}")
        avatar = None if source == "seeds" else AvatarRecord(people[index], sample_attributes(rng))
        eval_prompts.append(EvalPrompt(rng.getrandbits(63), avatar))
    starts = range(0, count, size)
    return [Group(place, source, tuple(eval_prompts[start : start + size])) for place, start in enumerate(starts)]
