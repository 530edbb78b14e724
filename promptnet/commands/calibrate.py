"""`promptnet calibrate`: measure what an encoder knows, so that strangers to it are noticed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from promptnet.commands._checks import check_counts, check_seed
from promptnet.commands._loading import EMBEDDED, check_model, find_base, load_pipeline, quiet
from promptnet.commands._progress import status
from promptnet.io.progress import measuring_bar

if TYPE_CHECKING:
    from PIL.Image import Image

_AVATARS = "avatars"
_PLAIN = 0.5  # share of avatars that are shown as they are, the others in other frames


def calibrate(
    known: str = "avatars",
    foreign: Path | None = None,
    number: int = 1200,
    drawn: int = 32,
    out: Path | None = None,
    seed: int = 0,
    base: str = EMBEDDED,
    promptnet: str | None = None,
    image_encoder: str | None = None,
    device: str = "auto",
) -> None:
    """Measure what an encoder knows and write it beside its weights: later, strangers to it are noticed.

    Args:
        known: a folder of images of the kind that the encoder was trained on; or avatars, drawn here
        foreign: a folder of images that it cannot know (null: photographs that installed packages bring)
        number: of known images at most; the limits are set by a quarter as many others
        drawn: number of people drawn again, to learn how alike that makes them
        out: the encoder's folder to write to (null: the one it was loaded from)
        seed: makes the result reproducible
        base: base model, a folder in diffusers layout or a Hub id
        promptnet: folder of the encoder, if the base model has none or another one is wanted
        image_encoder: CLIP image encoder for that encoder, a folder or a Hub id
        device: auto, cpu, cuda, ...
    """
    check_counts(8, number=number)
    check_counts(0, drawn=drawn)
    check_seed(seed)
    target = _target(out, base, promptnet)
    for folder in (None if known == _AVATARS else Path(known), foreign):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"'{folder}' is no folder of images")
    check_model(base, device, promptnet, image_encoder, subjects=True)
    quiet()
    from promptnet.inference.calibration import calibrate as measure

    with status("loading the base model"):
        pipe = load_pipeline(base, device, promptnet, image_encoder)
    pipe.set_progress_bar_config(disable=True)
    with status("collecting images"):
        known_images, unseen = _known(known, number, seed, pipe.trained_size_px[0])
        foreign_images = _foreign(foreign)
    with measuring_bar("drawing people again") as advance:
        found = measure(pipe, known_images, unseen, foreign_images, num_drawn=drawn, seed=seed, callback=advance)
    found.save(target)
    limit = "never" if found.foreign is None else f"beyond {found.foreign:.2f}"
    alike = "" if found.alike is None else f" or alike below {found.alike:.2f}"
    print(f"{target}: from {len(known_images)} images, limits from {len(unseen)}; {len(foreign_images)} foreign ones")
    print(f"doubtful beyond {found.doubtful:.2f}{alike}, foreign {limit}")


def _target(out: Path | None, base: str, promptnet: str | None) -> Path:
    folder = out or Path(promptnet or f"{find_base(base)}/promptnet")
    if not folder.is_dir():
        raise ValueError(f"the encoder's folder '{folder}' does not exist: give it with --out")
    return folder


def _known(known: str, number: int, seed: int, size_px: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """Known images, and others to set the limits by: of people that no training saw, where they are drawn here."""
    if known != _AVATARS:
        from promptnet.datasets.image_files import image_files

        files = image_files(Path(known))[: number + number // 4]
        return [file for place, file in enumerate(files) if place % 5], files[::5]
    known_images = [_avatar(seed, place, "train", size_px) for place in range(number)]
    return known_images, [_avatar(seed, place, "validation", size_px) for place in range(number // 4)]


def _avatar(seed: int, place: int, split: Literal["train", "validation"], size_px: int) -> Image:
    """An avatar in a frame as the encoder's training shows them."""
    from promptnet.datasets.avatars.frames import sample_frame
    from promptnet.datasets.avatars.person import sample_avatar
    from promptnet.datasets.avatars.render import render_avatar
    from promptnet.datasets.stream import sample_rng

    avatar = sample_avatar(seed, place, split)
    frame = sample_frame(sample_rng(seed, place, "calibrate"), plain=_PLAIN)
    return frame(render_avatar(avatar, 2 * size_px), avatar.attributes.background)


def _foreign(folder: Path | None) -> list[Path]:
    if folder is not None:
        from promptnet.datasets.image_files import image_files

        return image_files(folder)
    from promptnet.datasets.photographs import package_photographs

    return package_photographs()
