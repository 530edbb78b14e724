"""Crops: where they lie, how they are turned, and what is shown beyond the image's edge."""

import math

import numpy as np
import pytest
from PIL import Image

from promptnet.images.face_alignment import Crop, crop_around, cut, eye_angle_deg, inside_share
from promptnet.images.face_detection import Face


def face(left_eye: tuple[float, float], right_eye: tuple[float, float]) -> Face:
    return Face(box=(10, 20, 50, 70), landmarks=(left_eye, right_eye, (30, 45), (25, 60), (35, 60)), score=1.0)


@pytest.mark.parametrize("angle_deg", [-150, -90, -30, 0, 10, 45, 179])
def test_the_angle_is_the_eyes_lines(angle_deg: float) -> None:
    turn = math.radians(angle_deg)
    right_eye = (30 + 20 * math.cos(turn), 40 + 20 * math.sin(turn))
    assert eye_angle_deg(face((30, 40), right_eye)) == pytest.approx(angle_deg)


def test_eyes_in_one_place_turn_nothing() -> None:
    assert eye_angle_deg(face((30, 40), (30.1, 40.2))) == 0


def test_a_crop_is_the_box_with_a_margin_on_either_side() -> None:
    crop = crop_around(face((20, 40), (40, 40)), margin=0.5)
    assert (crop.center_x, crop.center_y, crop.side_px, crop.angle_deg) == (30, 45, 100, 0)


def smooth(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: a pixel's colour says where it is from."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, width).round()
    pixels[..., 1] = np.linspace(0, 250, height).round()[:, None]
    return Image.fromarray(pixels)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_a_crop_on_the_grid_takes_the_pixels_as_they_are() -> None:
    image = noise(60, 50)
    taken = cut(image, Crop(30, 25, 20, 0), 20)
    assert (np.asarray(taken) == np.asarray(image)[15:35, 20:40]).all()


@pytest.mark.parametrize(("angle_deg", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_quarter_turn_is_undone_exactly(angle_deg: float, turns: int) -> None:
    """A square turned clockwise comes out turned back, counter-clockwise."""
    image = noise(60, 50)
    taken = cut(image, Crop(30, 25, 20, angle_deg), 20)
    assert np.abs(np.asarray(taken).astype(int) - np.rot90(np.asarray(image)[15:35, 20:40], turns)).max() <= 1


@pytest.mark.parametrize("size_px", [24, 60, 150])
@pytest.mark.parametrize("angle_deg", [0, 33.0, -120.0])
def test_every_place_comes_from_where_the_crop_says(size_px: int, angle_deg: float) -> None:
    """The affine map, against its definition, whether the crop is shrunk, kept or enlarged."""
    image, crop = smooth(251, 201), Crop(125, 100, 90, angle_deg)
    taken = np.asarray(cut(image, crop, size_px)).astype(float)
    turn = math.radians(angle_deg)
    for row, column in [(0.25, 0.25), (0.25, 0.75), (0.6, 0.4)]:
        y, x = int(row * size_px), int(column * size_px)
        u, v = ((x + 0.5) / size_px - 0.5) * 90, ((y + 0.5) / size_px - 0.5) * 90
        from_x = 125 + u * math.cos(turn) - v * math.sin(turn)
        from_y = 100 + u * math.sin(turn) + v * math.cos(turn)
        assert taken[y, x, 0] == pytest.approx(from_x - 0.5, abs=1.5)
        assert taken[y, x, 1] == pytest.approx((from_y - 0.5) * 250 / 200, abs=2)


def test_beyond_the_edge_the_image_is_mirrored() -> None:
    image = noise(40, 40)
    taken = np.asarray(cut(image, Crop(10, 20, 40, 0), 40))
    pixels = np.asarray(image)
    assert (taken[:, 10:] == pixels[:, :30]).all()
    assert (taken[:, :10] == pixels[:, 9::-1]).all()


def test_a_crop_far_larger_than_the_image() -> None:
    """Mirrored again and again; a strip of one pixel, too."""
    taken = np.asarray(cut(noise(20, 1), Crop(10, 0.5, 100, 0), 100))
    assert taken.shape == (100, 100, 3)
    assert (taken == taken[:1]).all()
    assert (taken[:, 40:60] == taken[:, 39:19:-1]).all()


def test_shrinking_much_does_not_alias() -> None:
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, ::2] = 255
    taken = np.asarray(cut(Image.fromarray(stripes), Crop(400, 400, 700, 20), 32))
    assert np.abs(taken.astype(int) - 127).max() < 12


@pytest.mark.parametrize(
    ("crop", "share"),
    [
        (Crop(50, 50, 40, 0), 1.0),
        (Crop(50, 50, 40, 45), 1.0),
        (Crop(0, 50, 40, 0), 0.5),
        (Crop(0, 0, 40, 0), 0.25),
        (Crop(0, 0, 40, 45), 0.25),
        (Crop(50, 50, 200, 0), 0.25),
        (Crop(-90, 50, 40, 0), 0.0),
    ],
)
def test_the_share_inside(crop: Crop, share: float) -> None:
    assert inside_share(crop, (100, 100)) == pytest.approx(share, abs=0.02)
