"""What `promptnet prepare` can be told about images: checked once, the same in every process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from promptnet.images.load import MAX_PIXELS

Detector = Literal["mtcnn", "none"]
Faces = Literal["largest", "all", "exactly-one"]
Encoding = Literal["png", "jpeg"]

MAX_SIZE_PX = 4096


@dataclass(frozen=True)
class PrepareOptions:
    """How images become rows.

    Args:
        detector: "mtcnn" finds, aligns and crops faces; "none" takes the middle of images that are cropped already.
        faces: which of those that are large and sure enough: "largest", "all", or none unless there is "exactly-one".
        margin: space around a face on each side, as a share of the face.
        size_px: side of the outcome.
        keep_aspect: without a detector, keep the whole image, its shorter side `size_px`.
        min_face_px: longer side of a face (without a detector: shorter side of an image) at least, in the source; None
            takes a quarter of `size_px`.
        min_score: the detector's score at least.
        min_inside: share of a face's square that lies in the image at least; the rest is mirrored.
        min_sharpness: see `promptnet.images.crop`, of the outcome.
        max_pixels: of a source image.
        encoding: of the outcome; PNG loses nothing.
        part_size: images that are prepared as one piece of work and end in one shard.

    Raises:
        ValueError: a value outside its range, or a combination that means nothing.
    """

    detector: Detector = "mtcnn"
    faces: Faces = "largest"
    margin: float = 0.5
    size_px: int = 512
    keep_aspect: bool = False
    min_face_px: int | None = None
    min_score: float = 0.95
    min_inside: float = 0.5
    min_sharpness: float = 0.0
    max_pixels: int = MAX_PIXELS
    encoding: Encoding = "png"
    part_size: int = 256

    def __post_init__(self) -> None:
        ranges = {
            "margin": (0, 3),
            "size_px": (16, MAX_SIZE_PX),
            "min_face_px": (1, 100_000),
            "min_score": (0, 1),
            "min_inside": (0, 1),
            "min_sharpness": (0, float("inf")),
            "max_pixels": (1, 1_000_000_000),
            "part_size": (1, 100_000),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}={value} must be within {low} ... {high}")
        if self.keep_aspect and self.detector != "none":
            raise ValueError("keep_aspect goes with detector none: faces are cropped to squares")

    @property
    def smallest_face_px(self) -> int:
        """`min_face_px`, or what it is by default."""
        return self.size_px // 4 if self.min_face_px is None else self.min_face_px

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
