"""Tasks of the evaluation of edits: which edits, of which images.

Images come from seeds (the base model generates them from the neutral prompt), are real renders of held-out people, or
show subjects made from such renders. Renders may come in another frame, and of a style that no training had. A group
of images is generated in one batch.
"""

import random
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageOps

from promptnet.datasets.avatars.colours import NAMES
from promptnet.datasets.avatars.frames import Frame
from promptnet.datasets.avatars.person import WORLDS, Avatar, World, changed, sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.evaluation.harness.tasks import FRAMES, Split

Source = Literal["seeds", "renders", "subjects"]

NEUTRAL = "a portrait of a person"
NEUTRAL_SUBJECT = "a portrait of S*"
PLAIN = FRAMES["plain"]
_STREAM = 30_000  # other people than runs validate on, and than `harness.tasks` draws


@dataclass(frozen=True)
class Edit:
    """One attribute to change."""

    name: str
    styled: str
    """The neutral prompt with the attribute."""
    field: str
    value: str

    def applied(self, avatar: Avatar) -> Avatar:
        """Return the same person with only that attribute changed: the true answer.

        A colour is its word's centre, an expression the style's own drawing. Who has the attribute is left as is.
        """
        if avatar.record()[self.field] == self.value:
            return avatar
        exact = NAMES[self.field][self.value] if self.field in NAMES else self.value
        others = replace(avatar.attributes, drawing=0, **{self.field: exact})
        return Avatar(avatar.identity, changed(avatar.attributes, others, {self.field}))


EDITS: dict[str, Edit] = {
    edit.name: edit
    for edit in (
        Edit("happy", "a happy portrait of a person", "expression", "happy"),
        Edit("calm", "a calm portrait of a person", "expression", "calm"),
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
    avatar: Avatar | None = None
    """The person in a real render or in a subject's reference image."""


@dataclass(frozen=True)
class Group:
    """Images that are generated in one batch."""

    index: int
    source: Source
    eval_prompts: tuple[EvalPrompt, ...]
    frame: Frame = PLAIN
    """How renders are framed, and true answers with them."""

    def avatars(self) -> list[Avatar]:
        """Return the people of renders and subjects."""
        return [eval_prompt.avatar for eval_prompt in self.eval_prompts if eval_prompt.avatar is not None]

    def renders(self, size_px: int, edit: Edit | None = None) -> list[Image.Image]:
        """Render these people in the group's frame, as they are or as an edit is to make them."""
        shown = [avatar if edit is None else edit.applied(avatar) for avatar in self.avatars()]
        return [framed(avatar, self.frame, size_px) for avatar in shown]


def framed(avatar: Avatar, frame: Frame, size_px: int) -> Image.Image:
    """Render an avatar in a frame; the plain one is the render itself."""
    if frame == PLAIN:
        return render_avatar(avatar, size_px)
    large = frame(render_avatar(avatar, 2 * size_px), avatar.attributes.background)
    return large.resize((size_px, size_px), Image.Resampling.LANCZOS)


def moved_back(image: Image.Image, frame: Frame) -> Image.Image:
    """Undo where a frame puts what an image shows, as judges read faces in their usual place alone.

    What the frame cut off is filled with the colour of the image's upper left corner, its background.
    """
    if (frame.zoom, frame.shift_x, frame.shift_y, frame.mirrored) == (1.0, 0.0, 0.0, False):
        return image
    corner = image.crop((0, 0, 3, 3)).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(corner, tuple)
    undo = Frame(zoom=1 / frame.zoom, shift_x=-frame.shift_x / frame.zoom, shift_y=-frame.shift_y / frame.zoom)
    back = undo(image, "#{:02x}{:02x}{:02x}".format(*corner))
    return ImageOps.mirror(back) if frame.mirrored else back


def make_groups(
    source: Source,
    split: Split,
    count: int,
    seed: int = 0,
    size: int = 8,
    *,
    world: World = "known",
    frame: str = "plain",
) -> list[Group]:
    """Return `count` images in groups; fewer images are a prefix of more.

    Args:
        source: of the images.
        split: of the people in them, a stream without end.
        count: number of images.
        seed: decides people, attributes and noise.
        size: images in a group.
        world: what people are drawn from.
        frame: one of `promptnet.evaluation.harness.tasks.FRAMES`; images from seeds have none.

    Raises:
        ValueError: unknown frame, world or split, or a negative number of images.
    """
    if frame not in FRAMES:
        raise ValueError(f"frame={frame!r} is not one of {', '.join(FRAMES)}")
    if world not in WORLDS:
        raise ValueError(f"world={world!r} is not one of {', '.join(WORLDS)}")
    if count < 0:
        raise ValueError(f"{source}={count} must be at least 0")
    eval_prompts = []
    for index in range(count):
        noise = random.Random(f"edited {source} {seed} {split} {index}").getrandbits(63)
        avatar = None if source == "seeds" else sample_avatar(_STREAM + seed, index, split, world)
        eval_prompts.append(EvalPrompt(noise, avatar))
    how = PLAIN if source == "seeds" else FRAMES[frame]
    starts = range(0, count, size)
    return [Group(place, source, tuple(eval_prompts[start : start + size]), how) for place, start in enumerate(starts)]
