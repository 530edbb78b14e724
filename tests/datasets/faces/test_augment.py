"""Variations of samples are functions of the sample number."""

import numpy as np
import pytest
from PIL import Image

from promptnet.datasets.faces.augment import Augmentation, Colours, fitted, recoloured


def test_flips_and_colours_depend_on_the_sample_alone():
    augmentation = Augmentation(flip=0.5, colour_jitter=0.2, seed=3)
    flips = [augmentation.flipped(sample, "target") for sample in range(400)]
    assert flips == [Augmentation(0.5, 0.2, 3).flipped(sample, "target") for sample in range(400)]
    assert 160 < sum(flips) < 240
    assert flips != [augmentation.flipped(sample, "reference") for sample in range(400)]
    colours = [augmentation.colours(sample) for sample in range(50)]
    assert len(set(colours)) == 50
    assert all(0.8 <= c.contrast <= 1.2 and abs(c.hue) <= 0.02 for c in colours)
    assert Augmentation(colour_jitter=0).colours(7) == Colours()
    assert not any(Augmentation(flip=0).flipped(sample, "target") for sample in range(50))


def test_recolouring_does_what_it_says():
    image = Image.new("RGB", (8, 8), (100, 50, 20))
    assert recoloured(image, Colours()) is image
    assert recoloured(image, Colours(brightness=1.5)).getpixel((0, 0)) == (150, 75, 30)
    grey = recoloured(image, Colours(saturation=0)).getpixel((0, 0))
    assert len(set(grey)) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "corner"), [((200, 100), (0, 25)), ((100, 200), (25, 0)), ((333, 333), (0, 0))])
def test_fitting_takes_the_middle(size: tuple[int, int], corner: tuple[int, int]):
    image = Image.new("RGB", size, (0, 0, 0))
    image.paste((255, 255, 255), (size[0] // 2 - 10, size[1] // 2 - 10, size[0] // 2 + 10, size[1] // 2 + 10))
    found, found_corner = fitted(image, 50, 50)
    assert found.size == (50, 50)
    assert found_corner == corner
    rows, columns = np.nonzero(np.asarray(found.convert("L")) > 128)
    assert abs(rows.mean() - 24.5) < 0.6
    assert abs(columns.mean() - 24.5) < 0.6


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"colour_jitter": 1.0}])
def test_impossible_strengths_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="="):
        Augmentation(**wrong)  # type: ignore[arg-type]
