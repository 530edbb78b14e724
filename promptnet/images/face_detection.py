"""Finding faces: MTCNN (arXiv 1604.02878) as facenet-pytorch ships it, its weights in the wheel.

Those three files of weights are torch pickles, an exception to safetensors (SECURITY.md lists all). They come with an
installed package, whose code runs anyway, and are read with `weights_only`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Point = tuple[float, float]

_CANDIDATE_SCORES = [0.6, 0.7, 0.7]  # each network's threshold, as published; stricter ones are the caller's
_PYRAMID_STEP = 0.709
_SMALLEST_PX = 20  # faces are sought down to this side in the image that is searched
_SEARCHED_PX = 1280  # longer side of the image that is searched, where the faces sought allow it


class DetectionError(ValueError):
    """The detector failed on an image."""


@dataclass(frozen=True)
class Face:
    """One face found, in pixels of the image; (0, 0) is the corner of its first pixel.

    Attributes:
        box: left, top, right, bottom; may reach beyond the image.
        landmarks: of an upright face the left one of the eyes that the image shows, the right one, the nose, and the
            left and the right corner of the mouth.
        score: how sure the detector is, 0 to 1.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[Point, ...]
    score: float

    @property
    def size_px(self) -> float:
        """Return the longer side of the box."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


class FaceDetector:
    """MTCNN on the CPU.

    Args:
        min_face_px: side of the smallest faces to find. Large images are searched at a smaller size as far as this
            allows.

    Raises:
        ModuleNotFoundError: facenet-pytorch is not installed.
    """

    def __init__(self, min_face_px: int = 40) -> None:
        self.min_face_px = max(min_face_px, _SMALLEST_PX)
        self._networks = _load_networks()

    def detect(self, image: Image.Image) -> list[Face]:
        """Return the faces in an RGB image, the largest first.

        Raises:
            DetectionError: the detector fails on this image.
        """
        searched, scales = _shrunk(image, self.min_face_px)
        sought_px = max(_SMALLEST_PX, self.min_face_px * min(scales))
        if min(searched.size) < sought_px:
            return []
        try:
            boxes, points = self._run(np.asarray(searched), sought_px)
        except (RuntimeError, IndexError, ValueError) as error:
            raise DetectionError(f"the face detector failed ({error})") from error
        faces = [_face(box, landmarks, scales) for box, landmarks in zip(boxes, points, strict=True)]
        return sorted(faces, key=lambda face: (-face.size_px, face.box))

    def _run(self, pixels: np.ndarray, sought_px: float) -> tuple[np.ndarray, np.ndarray]:
        """Boxes with scores (N, 5) and landmarks (N, 5, 2) of one image (H, W, 3)."""
        import torch
        from facenet_pytorch.models.utils.detect_face import detect_face

        pnet, rnet, onet = self._networks
        device = torch.device("cpu")
        with torch.inference_mode():
            boxes, points = detect_face(pixels, sought_px, pnet, rnet, onet, _CANDIDATE_SCORES, _PYRAMID_STEP, device)
        return np.asarray(boxes[0], np.float64).reshape(-1, 5), np.asarray(points[0], np.float64).reshape(-1, 5, 2)


def check_installed() -> None:
    """Find out, without loading anything, whether there is a detector.

    Raises:
        ModuleNotFoundError: facenet-pytorch is not installed.
    """
    if importlib.util.find_spec("facenet_pytorch") is None:
        raise ModuleNotFoundError(
            "finding faces needs facenet-pytorch: pip install 'promptnet[faces]', or prepare images that are cropped "
            "already with --detector none"
        )


def _load_networks() -> list[Any]:
    check_installed()
    import torch
    from facenet_pytorch.models import mtcnn

    folder = Path(mtcnn.__file__).parents[1] / "data"
    networks = []
    for kind in (mtcnn.PNet, mtcnn.RNet, mtcnn.ONet):
        network = kind(pretrained=False)
        network.load_state_dict(
            torch.load(folder / f"{kind.__name__.lower()}.pt", map_location="cpu", weights_only=True)
        )
        networks.append(network.eval().requires_grad_(False))
    return networks


def _shrunk(image: Image.Image, min_face_px: int) -> tuple[Image.Image, Point]:
    """The image in the size it is searched at, and what its width and height were multiplied by."""
    scale = min(1.0, max(_SMALLEST_PX / min_face_px, _SEARCHED_PX / max(image.size)))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if size == image.size:
        return image, (1.0, 1.0)
    shrunk = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return shrunk, (size[0] / image.width, size[1] / image.height)


def _face(box: np.ndarray, landmarks: np.ndarray, scales: Point) -> Face:
    """Rounded to what is meaningful, so that the last bit of an addition shows nowhere."""
    across, down = scales
    left, top, right, bottom, score = (float(value) for value in box)
    return Face(
        box=(round(left / across, 2), round(top / down, 2), round(right / across, 2), round(bottom / down, 2)),
        landmarks=tuple((round(float(x) / across, 2), round(float(y) / down, 2)) for x, y in landmarks),
        score=round(score, 4),
    )
