"""The frame of a reference, found again by the shipped model's own loss."""

import math
from pathlib import Path
from typing import Any

import pytest

from promptnet import PromptNetPipeline
from promptnet.datasets.avatars.frames import Frame
from promptnet.datasets.avatars.person import Avatar, sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.inference.registration import Crop, register

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "tiny"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return PromptNetPipeline.from_pretrained(SHIPPED)


def _avatar(index: int) -> Avatar:
    return sample_avatar(0, index, "validation")


@pytest.mark.parametrize(
    ("place", "frame", "zoom", "shift_x"),
    [
        (0, Frame(), 1.0, 0.0),
        (0, Frame(zoom=0.8), 1.25, 0.0),
        (1, Frame(zoom=1.2), 0.83, 0.0),
        (1, Frame(shift_x=0.1), 1.0, -0.1),
    ],
)
def test_a_moved_image_is_moved_back(pipe: Any, place: int, frame: Frame, zoom: float, shift_x: float):
    avatar = _avatar(place)
    found = register(pipe, frame(render_avatar(avatar), avatar.attributes.background))
    assert abs(math.log(found.crop.zoom / zoom)) < 0.1
    assert found.crop.shift_x == pytest.approx(shift_x, abs=0.03)
    assert found.crop.shift_y == pytest.approx(0.0, abs=0.03)
    assert (found.loss == found.loss_before) == (frame == Frame())
    assert found.image.size == (64, 64)


def test_a_crop_in_its_own_frame_is_the_image_and_a_search_is_reproducible(pipe: Any):
    image = render_avatar(_avatar(2), 64)
    found = register(pipe, image, num_levels=1, margin=10.0)
    assert found.crop == Crop()
    assert found.image.tobytes() == image.tobytes()
    assert register(pipe, image, num_levels=1, margin=10.0).loss == found.loss


def test_senseless_settings_are_refused(pipe: Any):
    with pytest.raises(ValueError, match="num_levels=0"):
        register(pipe, render_avatar(_avatar(0)), num_levels=0)
