"""`promptnet edit`: change an image with edit cards."""

from __future__ import annotations

from pathlib import Path

from promptnet.commands._checks import check_files, check_numbers, check_plain, check_prompts, check_seed
from promptnet.commands._loading import EMBEDDED, check_model, load_pipeline, make_generator
from promptnet.commands._output import IMAGES, check_output
from promptnet.commands._progress import status
from promptnet.io.atomic import make_folder, write_whole


def edit(
    card: list[Path],
    out: Path,
    image: Path | None = None,
    subject: Path | None = None,
    strength: float = 1.0,
    prompt: str | None = None,
    mask: Path | None = None,
    correction_end: float | None = None,
    crop: bool = False,
    as_published: bool = False,
    seed: int = 0,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Change one attribute of an image, and nothing else.

    Args:
        card: one edit card of `promptnet learn-edit`, or several to apply together
        out: the image to write (.png, .jpg, .webp)
        image: the image to edit
        subject: edit the image in a subject file of `promptnet customize`, instead of an image
        strength: 0 returns the image unchanged, 1 applies the edit as learned, more strengthens it
        prompt: description of the image (null: the card's neutral prompt)
        mask: an image of the same size, white where the edit may act
        correction_end: fraction of the steps, from the noisy end, that are corrected towards the image (null: all)
        crop: take the central square of the image and its mask, if their size is not the base model's
        as_published: invert the image as the published code does: guided, and corrected with noise of its own, one
            noise level late, in 33 of 50 steps
        seed: of that noise
        base: base model, a folder in diffusers layout or a Hub id
        device: auto, cpu, cuda, ...
    """
    if (image is None) == (subject is None):
        raise ValueError("give either --image or --subject: the image to edit")
    check_output(out, IMAGES)
    for option, paths in {"card": card, "image": [image], "subject": [subject], "mask": [mask]}.items():
        check_files(option, paths)
    check_numbers(strength=strength)
    check_numbers(0, 1, correction_end=correction_end)
    if prompt is not None:
        check_prompts([prompt], 1) if subject is not None else check_plain(prompt)
    check_seed(seed)
    check_model(base, device, subjects=subject is not None)
    from promptnet import Subject
    from promptnet.inference.editing.card import EditCard
    from promptnet.inference.editing.edit_image import edit_image
    from promptnet.inference.editing.inversion import make_scheduler

    cards = [EditCard.load(path).scaled(strength) for path in card]
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
            correction_end=correction_end,
            as_published=as_published,
            mask=mask,
            crop=crop,
            generator=generator,
        )
    make_folder(out.parent)
    write_whole(out, edited[0].save, public=True)
    print(out)
