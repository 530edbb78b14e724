"""Head counts in images composed of 1, 2 and 4 avatars of people that neither judge nor finder was trained on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptnet.datasets.avatars.colours import BACKGROUND
from promptnet.datasets.avatars.person import sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.metrics.head_count import Head, HeadFinder, Scene, compose, scenes, searched_sides
from promptnet.metrics.judge import load_judge

JUDGE = Path(__file__).parents[2] / "checkpoints" / "judges" / "validation"


@pytest.fixture(scope="module")
def finder() -> HeadFinder:
    return HeadFinder.of(load_judge(JUDGE))


def avatars(count: int, side_px: int, seed: int) -> list[Image.Image]:
    return [render_avatar(sample_avatar(seed, index, "validation"), side_px) for index in range(count)]


@pytest.mark.parametrize(
    ("num_heads", "columns", "side_px"), [(1, 1, 32), (1, 1, 64), (1, 1, 128), (2, 2, 64), (2, 1, 64), (4, 2, 64)]
)
def test_composed_heads_are_counted(num_heads: int, columns: int, side_px: int, finder: HeadFinder) -> None:
    images = [compose(avatars(num_heads, side_px, seed), columns) for seed in range(100, 124)]
    counts = finder.count(images)
    assert (counts == num_heads).mean() >= 0.7
    assert abs(counts.mean() - num_heads) <= 0.3


def test_a_head_is_found_at_its_place_and_an_empty_image_has_none(finder: HeadFinder) -> None:
    canvas = Image.new("RGB", (160, 96), BACKGROUND["teal"])
    assert finder.find(canvas) == []
    canvas.paste(avatars(1, 64, 1)[0], (90, 20))
    head = finder.find(canvas)[0]
    assert np.hypot(head.x_px - 122, head.y_px - 49) < 10


def test_scenes_hold_the_places_of_heads() -> None:
    for scene in scenes(3, seed=5):
        assert scene.image.size == (128, 128)
        assert scene.heads
    alone = Scene(Image.new("RGB", (64, 64)), (Head(28, 28, 64, 1.0),))
    answers = alone.answers((8, 8))
    assert answers[3, 3] == 1
    assert answers[3, 4] == -1
    assert answers[7, 7] == answers[0, 0] == 0
    assert not Scene(alone.image, (Head(28, 28, 160, 1.0),)).answers((8, 8)).any()


def test_all_sizes_of_avatars_are_searched() -> None:
    assert min(searched_sides((128, 128))) < 64
    assert max(searched_sides((128, 128))) > 128
    assert max(searched_sides((160, 96))) < 160
    assert all(
        a < b < 1.5 * a for a, b in zip(searched_sides((256, 256)), searched_sides((256, 256))[1:], strict=False)
    )


def test_the_nearest_heads_are_one() -> None:
    large = Head(64, 60, 128, 0.9)
    assert large.is_same(Head(80, 80, 64, 0.8))
    assert not large.is_same(Head(110, 100, 64, 0.8))
