"""Sharpness orders images as the eye does."""

import numpy as np
from PIL import Image, ImageFilter

from promptnet.images.crop import sharpness


def detail() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def test_blurring_lowers_it() -> None:
    found = [sharpness(detail().filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 20 * found[-1]


def test_one_colour_and_slivers_have_none() -> None:
    assert sharpness(Image.new("RGB", (64, 64), "teal")) == 0
    assert sharpness(detail().crop((0, 0, 64, 2))) == 0


def test_it_is_the_variance_of_the_laplacian() -> None:
    pixels = np.zeros((5, 5), np.uint8)
    pixels[2, 2] = 10
    expected = np.var([0, 10, 0, 10, -40, 10, 0, 10, 0])
    assert sharpness(Image.fromarray(pixels)) == expected
