"""What is asked on people without end: unseen people, references in a named frame, prompts, and the true answers."""

from dataclasses import dataclass, replace

from PIL import Image

from promptnet.datasets.avatars.captions import NEUTRAL_PROMPT, caption
from promptnet.datasets.avatars.frames import Frame
from promptnet.datasets.avatars.person import (
    ATTRIBUTE_FIELDS,
    Avatar,
    Split,
    World,
    changed,
    sample_attributes,
    sample_avatar,
)
from promptnet.datasets.avatars.render import render_avatar
from promptnet.datasets.stream import sample_rng

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
"""Frames that robustness is measured in."""


@dataclass(frozen=True)
class PeopleAsk:
    """One prompt about a person: what it names, and the record of the true answer."""

    prompt: str
    fields: frozenset[str]
    truth: Avatar
    seed: int


@dataclass(frozen=True)
class PersonAsked:
    """A person by one reference; what `promptnet.evaluation.harness` generates for.

    Attributes:
        index: among the people asked for.
        reference: its record.
        frame: how the image was made.
        eval_prompts: what is generated.
    """

    index: int
    reference: Avatar
    frame: Frame
    eval_prompts: tuple[PeopleAsk, ...]

    @property
    def seed(self) -> int:
        """Return the seed of per-user tuning."""
        return self.eval_prompts[0].seed

    def reference_image(self, size_px: int) -> Image.Image:
        """Render the only image of the person that a method gets."""
        large = render_avatar(self.reference, 2 * size_px)
        framed = self.frame(large, self.reference.attributes.background)
        return framed.resize((size_px, size_px), Image.Resampling.LANCZOS)

    def true_images(self, size_px: int) -> list[Image.Image]:
        """Render the true answers, prompt by prompt."""
        return [render_avatar(ask.truth, size_px) for ask in self.eval_prompts]

    def described(self) -> "PersonAsked":
        """Return the same with prompts that say in words who it is, and all that is to stay as it was."""
        asks = tuple(replace(ask, prompt=caption(ask.truth.record())) for ask in self.eval_prompts)
        return replace(self, eval_prompts=asks)


def ask_people(
    num_people: int,
    num_prompts: int,
    *,
    split: Split = "validation",
    world: World = "known",
    frame: str = "plain",
    seed: int = 0,
) -> list[PersonAsked]:
    """Return people no training saw, the first prompt of each naming nothing, the others two or three attributes.

    Args:
        num_people: how many.
        num_prompts: of each.
        split: "validation" for choices, "test" for figures to report.
        world: what people are drawn from.
        frame: one of `FRAMES`.
        seed: decides people, prompts and noise.

    Raises:
        ValueError: the frame or the split is not known.
    """
    if frame not in FRAMES:
        raise ValueError(f"frame={frame!r} is not one of {', '.join(FRAMES)}")
    if split not in ("validation", "test"):
        raise ValueError(f"split={split!r} must be 'validation' or 'test': on others something was trained")
    return [_person(place, num_prompts, split, world, FRAMES[frame], seed) for place in range(num_people)]


def _person(place: int, num_prompts: int, split: Split, world: World, frame: Frame, seed: int) -> PersonAsked:
    reference = sample_avatar(10_000 + seed, place, split, world)  # other people than runs validate on
    eval_prompts = tuple(_eval_prompt(reference, place, number, seed) for number in range(num_prompts))
    return PersonAsked(place, reference, frame, eval_prompts)


def _eval_prompt(reference: Avatar, place: int, number: int, seed: int) -> PeopleAsk:
    rng = sample_rng(seed, 1000 * place + number, "ask people")
    if number == 0:
        return PeopleAsk(NEUTRAL_PROMPT, frozenset(), reference, rng.getrandbits(62))
    fields, others = rng.sample(ATTRIBUTE_FIELDS, rng.randint(2, 3)), reference.attributes
    while any(others.record()[field] == reference.record()[field] for field in fields):
        others = sample_attributes(reference.identity.style, rng)
    truth = Avatar(reference.identity, changed(reference.attributes, others, set(fields)))
    prompt = caption(truth.record(), subject="S*", fields=fields)
    return PeopleAsk(prompt, frozenset(fields), truth, rng.getrandbits(62))
