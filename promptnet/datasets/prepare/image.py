"""One image from outside becomes rows of the data set, or is refused with a reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

from PIL import Image

from promptnet.datasets.prepare.options import PrepareOptions
from promptnet.datasets.prepare.sources.base import Raw, Refused
from promptnet.images.crop import sharpness
from promptnet.images.face_alignment import Crop, crop_around, cut, inside_share
from promptnet.images.face_detection import DetectionError, Face
from promptnet.images.load import MIN_SIZE_PX, open_hashed

Row = dict[str, Any]
Detect = Callable[[Image.Image], list[Face]]

_JPEG_QUALITY = 95


def rows_of(raw: Raw, name: str, options: PrepareOptions, detect: Detect | None) -> list[Row]:
    """The rows that one source image gives, without its name: one, or with `faces="all"` one a face.

    Args:
        raw: the image.
        name: of it, for the rows.
        options: how.
        detect: finds faces, the largest first; None where `options` wants no detector.

    Raises:
        ImageError: it gives none; `reason` and `problem` say why.
    """
    min_size_px = min(MIN_SIZE_PX, options.smallest_face_px)
    image, source_hash = open_hashed(raw.content, max_pixels=options.max_pixels, min_size_px=min_size_px)
    found = _whole(image, options) if detect is None else _faces(image, options, detect)
    sharp = [row for row in found if row["sharpness"] >= options.min_sharpness]
    if not sharp:
        best = max(row["sharpness"] for row in found)
        raise Refused("blurred", f"has a sharpness of {best:.1f}: at least {options.min_sharpness} is wanted")
    about = {
        # Of several people in an image, nobody knows which of them its name means.
        "identity": raw.identity if len(found) == 1 else None,
        "caption": raw.caption,
        "source": name,
        "source_hash": source_hash,
        "pixel_hash": _pixel_hash(image),
    }
    return [row | about for row in sharp]


def _whole(image: Image.Image, options: PrepareOptions) -> list[Row]:
    """The middle of an image, or with `keep_aspect` all of it."""
    if min(image.size) < options.smallest_face_px:
        side = f"{image.width}x{image.height} px"
        raise Refused("too small", f"is too small, {side}: at least {options.smallest_face_px} px a side are wanted")
    side_px = min(image.size)
    width_px, height_px = image.size if options.keep_aspect else (side_px, side_px)
    left, top = (image.width - width_px) // 2, (image.height - height_px) // 2
    box = (left, top, left + width_px, top + height_px)
    scale = options.size_px / side_px
    outcome = image.resize((round(width_px * scale), round(height_px * scale)), Image.Resampling.LANCZOS, box=box)
    return [_row(outcome, options) | {"box": list(box), "landmarks": None, "crop": None, "score": None}]


def _faces(image: Image.Image, options: PrepareOptions, detect: Detect) -> list[Row]:
    faces = _chosen(_usable(image, options, detect), options)
    crops = {face: crop_around(face, options.margin) for face in faces}
    shares = {face: inside_share(crop, image.size) for face, crop in crops.items()}
    inside = [face for face in faces if shares[face] >= options.min_inside]
    if not inside:
        share = f"{max(shares.values()):.2f} of its square in the image"
        raise Refused("cut off", f"shows a face at the edge, {share}: at least {options.min_inside} are wanted")
    return [_face_row(image, face, crops[face], options) for face in inside]


def _usable(image: Image.Image, options: PrepareOptions, detect: Detect) -> list[Face]:
    """The faces that are sure and large enough, the largest first."""
    try:
        found = detect(image)
    except DetectionError as error:
        raise Refused("detector failed", f"cannot be searched: {error}") from error
    sure = [face for face in found if face.score >= options.min_score]
    if not sure:
        best = f", the best guess scores {max(face.score for face in found):.2f}" if found else ""
        raise Refused("no face", f"shows no face that the detector is sure of{best}")
    large = [face for face in sure if face.size_px >= options.smallest_face_px]
    if not large:
        side = f"{max(face.size_px for face in sure):.0f} px"
        raise Refused("face too small", f"shows a face of {side}: at least {options.smallest_face_px} px are wanted")
    return large


def _chosen(faces: list[Face], options: PrepareOptions) -> list[Face]:
    if options.faces == "exactly-one" and len(faces) > 1:
        raise Refused("several faces", f"shows {len(faces)} faces, and exactly one is wanted")
    return faces if options.faces == "all" else faces[:1]


def _face_row(image: Image.Image, face: Face, crop: Crop, options: PrepareOptions) -> Row:
    place = {"box": list(face.box), "landmarks": [list(point) for point in face.landmarks], "crop": _numbers(crop)}
    return _row(cut(image, crop, options.size_px), options) | place | {"score": face.score}


def _numbers(crop: Crop) -> list[float]:
    return [crop.center_x, crop.center_y, crop.side_px, crop.angle_deg]


def _row(outcome: Image.Image, options: PrepareOptions) -> Row:
    file = BytesIO()
    if options.encoding == "png":
        outcome.save(file, "PNG", compress_level=3)
    else:
        outcome.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return {"image": {"bytes": file.getvalue(), "path": None}, "sharpness": sharpness(outcome)}


def _pixel_hash(image: Image.Image) -> str:
    """Of the upright 8-bit RGB image, so that two files of one image are known as such."""
    size = f"{image.width}x{image.height} ".encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()
