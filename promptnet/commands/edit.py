"""`promptnet edit`: an image and edit cards in, the edited image out."""

from __future__ import annotations

from pathlib import Path

from promptnet.commands._loading import EMBEDDED, load_pipeline, make_generator
from promptnet.commands._output import IMAGES, check_output
from promptnet.commands._progress import status
from promptnet.io.files import write_whole


def edit(
    card: list[Path],
    out: Path,
    image: Path | None = None,
    subject: Path | None = None,
    strength: float = 1.0,
    prompt: str | None = None,
    mask: Path | None = None,
    correct_until: float | None = None,
    crop: bool = False,
    as_published: bool = False,
    seed: int = 0,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Change one attribute of an image, and nothing else.

    Args:
        card: one edit card of `promptnet optimize-edit`, or several that act together
        out: the image to write (.png, .jpg, .webp)
        image: the image to edit
        subject: edit the image that a subject file of `promptnet customize` keeps, instead of an image
        strength: 0 gives the image back, 1 edits as learned, more edits more
        prompt: what the image shows (null: the card's neutral prompt)
        mask: an image of the same size, white where the edit may act
        correct_until: share of the steps, from the noisy end, that hold on to the image (null: all of them)
        crop: take the central square of an image of another size than the base model draws, and of its mask
        as_published: invert the image as the published code does: guided, and corrected with noise of its own, one
            noise level late, in 33 of 50 steps
        seed: of that noise
        base: base model, a folder in diffusers layout or a Hub id
        device: auto, cpu, cuda, ...
    """
    if (image is None) == (subject is None):
        raise ValueError("give either --image or --subject: the image to edit")
    check_output(out, IMAGES)
    from promptnet import Subject
    from promptnet.inference.editing.card import MixingWeights
    from promptnet.inference.editing.edit_image import edit_image
    from promptnet.inference.editing.inversion import make_scheduler

    cards = [MixingWeights.load(path).scaled(strength) for path in card]
    source = Subject.load(subject) if subject is not None else image
    assert source is not None
    generator = make_generator(seed)
    with status("loading the base model"):
        pipe = load_pipeline(base, device)
    pipe.scheduler = make_scheduler(cards[0].scheduler, pipe.scheduler.config)
    with status("editing"):
        edited = edit_image(
            pipe,
            source,
            cards,
            prompt=prompt,
            correct_until=correct_until,
            as_published=as_published,
            mask=mask,
            crop=crop,
            generator=generator,
        )
    write_whole(out, edited[0].save)
    print(out)
