"""The detector on photographs that scikit-image ships, and how it is loaded."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.images import face_detection as faces
from promptnet.images.face_alignment import crop_around, cut, eye_angle_deg
from promptnet.images.face_detection import DetectionError, FaceDetector
from tests.datasets.image_sets import photograph


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(40)


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return photograph("astronaut.png")


def overlap(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    def area(b: tuple[float, ...]) -> float:
        return max(b[2] - b[0], 0) * max(b[3] - b[1], 0)

    both = area((*map(max, box[:2], other[:2]), *map(min, box[2:], other[2:])))
    return both / (area(box) + area(other) - both)


def test_the_astronaut(detector: FaceDetector, astronaut: Image.Image) -> None:
    (face,) = detector.detect(astronaut)
    assert overlap(face.box, (181, 62, 268, 172)) > 0.9
    assert face.score > 0.99
    left_eye, right_eye, nose, mouth_left, mouth_right = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(mouth_left[1], mouth_right[1])
    assert face.size_px == pytest.approx(110, abs=8)


def test_a_large_image_is_searched_smaller_and_answers_in_its_own_pixels(
    detector: FaceDetector, astronaut: Image.Image
) -> None:
    (face,) = detector.detect(astronaut.resize((2560, 2048)))
    assert overlap(face.box, (181 * 5, 62 * 4, 268 * 5, 172 * 4)) > 0.85


def test_the_largest_comes_first(detector: FaceDetector, astronaut: Image.Image) -> None:
    both = Image.new("RGB", (900, 520), "grey")
    both.paste(astronaut.resize((300, 300)), (0, 0))
    both.paste(astronaut, (380, 0))
    first, second = detector.detect(both)
    assert first.size_px > second.size_px > 40
    assert first.box[0] > 380


def test_images_too_small_for_any_face(detector: FaceDetector) -> None:
    for size in [(1, 1), (39, 300), (12, 12), (41, 41)]:
        assert detector.detect(Image.new("RGB", size)) == []


@pytest.mark.parametrize("turn_deg", [-25, 25])
def test_a_turned_face_comes_out_upright(turn_deg: int, detector: FaceDetector, astronaut: Image.Image) -> None:
    turned = astronaut.rotate(-turn_deg, Image.Resampling.BICUBIC, fillcolor="grey")
    (straight,) = detector.detect(astronaut)
    (face,) = detector.detect(turned)
    assert eye_angle_deg(face) - eye_angle_deg(straight) == pytest.approx(turn_deg, abs=5)
    (again,) = detector.detect(cut(turned, crop_around(face, 0.5), 256))
    assert abs(eye_angle_deg(again)) < 4
    middle = np.mean([(again.box[0] + again.box[2]) / 2, (again.box[1] + again.box[3]) / 2])
    assert math.isclose(middle, 128, abs_tol=16)


def test_weights_are_read_as_weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    load, seen = torch.load, []

    def watched(file, **options):
        seen.append(options.get("weights_only"))
        return load(file, **options)

    monkeypatch.setattr(torch, "load", watched)
    FaceDetector()
    assert seen == [True] * 3


def test_a_failure_inside_the_detector_is_about_one_image(
    detector: FaceDetector, astronaut: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_pixels: torch.Tensor) -> None:
        raise RuntimeError("odd shape")

    monkeypatch.setattr(detector._networks[1], "forward", fail)
    with pytest.raises(DetectionError, match="odd shape"):
        detector.detect(astronaut)


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        faces.importlib.util, "find_spec", lambda name: None if name == "facenet_pytorch" else find(name)
    )
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'promptnet\[faces\]'.*--detector none"):
        FaceDetector()
