import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.images.crop import fitted, square, to_pixels


def test_square_is_the_centre():
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste((0, 0, 255), (30, 0, 60, 30))
    assert square(wide, 30).tobytes() == Image.new("RGB", (30, 30), "blue").tobytes()
    assert square(wide.rotate(90, expand=True), 30).tobytes() == Image.new("RGB", (30, 30), "blue").tobytes()


def test_square_of_a_image_of_the_right_size_is_that_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    assert square(image, 16).tobytes() == image.tobytes()


def test_square_averages_when_it_shrinks():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))).convert("RGB")
    inner = np.asarray(square(stripes, 8)).astype(int)[:, 1:-1]
    assert np.abs(inner - 127.5).max() < 8


def test_pixels_span_minus_one_to_one():
    image = Image.new("RGB", (4, 2), (0, 255, 51))
    pixels = to_pixels(image)
    assert pixels.shape == (3, 2, 4)
    torch.testing.assert_close(pixels[:, 1, 3], torch.tensor([-1.0, 1.0, -0.6]))


@pytest.mark.parametrize(("size", "wanted"), [((64, 64), (32, 32)), ((48, 64), (32, 48)), ((64, 48), (64, 16))])
def test_fitted_keeps_the_middle_and_the_proportions(size, wanted):
    rows, columns = torch.linspace(-1, 1, size[0])[:, None], torch.linspace(-1, 1, size[1])[None]
    pixels = torch.stack([rows.expand(size), columns.expand(size)])[None]
    small = fitted(pixels, wanted)
    assert small.shape == (1, 2, *wanted)
    steps = small[0, 0, 6:8, 6:8].diff(dim=0).mean() * size[0], small[0, 1, 6:8, 6:8].diff(dim=1).mean() * size[1]
    assert steps[0] == pytest.approx(float(steps[1]), rel=0.05), "one side is stretched"
    torch.testing.assert_close(small, -small.flip(-1, -2), atol=0.05, rtol=0)  # half a pixel


def test_fitted_leaves_the_right_size_alone():
    pixels = torch.rand(1, 3, 8, 12)
    assert fitted(pixels, (8, 12)) is pixels
