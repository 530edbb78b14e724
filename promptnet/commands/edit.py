"""`promptnet edit`: change an image with edit cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from promptnet.commands._checks import check_files, check_numbers, check_plain, check_prompts, check_seed
from promptnet.commands._faces import face_square
from promptnet.commands._loading import EMBEDDED, check_model, load_pipeline, make_generator
from promptnet.commands._metadata import save_image, versions, without_folders
from promptnet.commands._methods import needs_encoder
from promptnet.commands._output import IMAGES, check_output
from promptnet.commands._progress import status
from promptnet.io.atomic import make_folder


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
    crop_face: bool = False,
    no_crop: bool = False,
    as_published: bool = False,
    seed: int = 0,
    base: str = EMBEDDED,
    no_metadata: bool = False,
    overwrite: bool = False,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
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
        crop: take the central square of the image and its mask, which is also what happens without this option
        crop_face: take the square around the largest face of the image instead; not with a mask
        no_crop: refuse an image whose size is not the base model's
        as_published: invert the image as the published code does: guided, and corrected with noise of its own, one
            noise level late, in 33 of 50 steps
        seed: of that noise
        base: base model, a folder in diffusers layout or a Hub id
        no_metadata: write no record of prompt, strength and seed into PNG files
        overwrite: replace a file that exists
        dtype: of the networks; float16 and bfloat16 are for GPUs
        device: auto, cpu, cuda, ...
    """
    if (image is None) == (subject is None):
        raise ValueError("give either --image or --subject: the image to edit")
    check_output(out, IMAGES, overwrite=overwrite)
    if crop_face and (mask is not None or subject is not None):
        raise ValueError("--crop-face goes with --image alone: leave out --mask and --subject")
    for option, paths in {"card": card, "image": [image], "subject": [subject], "mask": [mask]}.items():
        check_files(option, paths)
    check_numbers(strength=strength)
    check_numbers(0, 1, correction_end=correction_end)
    if prompt is not None:
        check_prompts([prompt], 1) if subject is not None else check_plain(prompt)
    check_seed(seed)
    check_model(base, device, subjects=subject is not None and needs_encoder([subject]))
    from promptnet import Subject
    from promptnet.inference.editing.card import EditCard
    from promptnet.inference.editing.edit_image import edit_image
    from promptnet.inference.editing.inversion import make_scheduler

    cards = [EditCard.load(path).scaled(strength) for path in card]
    source: Any = Subject.load(subject) if subject is not None else image
    if crop_face:
        source = face_square(source)
    generator = make_generator(seed)
    with status("loading the base model"):
        pipe = load_pipeline(base, device, None, None, dtype)
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
            crop=not no_crop,
            generator=generator,
        )
    make_folder(out.parent)
    record = {"prompt": prompt, "strength": strength, "seed": seed, "base": without_folders(base)}
    record |= {"edits": [[one.neutral, one.styled] for one in cards], "versions": versions()}
    save_image(out, edited[0], None if no_metadata else record)
    print(out)
