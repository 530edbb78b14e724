"""Reference images that the encoder knows, hardly knows, or does not know."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet import PromptNetPipeline
from promptnet.datasets.avatars.frames import Frame
from promptnet.datasets.avatars.person import sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.datasets.photographs import package_photographs
from promptnet.inference import admission
from promptnet.inference.admission import ForeignReferenceError, UnfamiliarReferenceWarning
from promptnet.inference.calibration import calibrate
from promptnet.inference.registration import Crop, Registration
from promptnet.models.familiarity import Familiarity

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "tiny"


def _image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8))


@pytest.fixture
def knowing(pipe: Any) -> Any:
    """A pipeline whose encoder knows noise, with limits around the first image's distance."""
    pipe = copy.copy(pipe)
    pipe.promptnet = copy.copy(pipe.promptnet)
    states = pipe.encode_references([_image(seed) for seed in range(1, 60)]).vision_states
    pipe.promptnet.familiarity = Familiarity.fit(states)
    return pipe


def _limits(pipe: Any, doubtful: float, foreign: float | None) -> None:
    """Limits as shares of the distance of image 0."""
    known = pipe.promptnet.familiarity
    distance = float(known.distances(pipe.encode_references(_image(0)).vision_states))
    limits = {"doubtful": doubtful * distance, "foreign": None if foreign is None else foreign * distance}
    pipe.promptnet.familiarity = replace(known, **limits)


def test_a_foreign_reference_is_refused_and_let_in_with_a_warning(knowing: Any):
    _limits(knowing, 0.8, 0.9)
    with pytest.raises(ForeignReferenceError, match="allow_foreign=True") as caught:
        knowing.encode(_image(0), registration="never")
    assert caught.value.distance > caught.value.limit
    with pytest.raises(ForeignReferenceError):
        knowing.customize(_image(0), steps=0, registration="never")
    with pytest.warns(UnfamiliarReferenceWarning, match="may draw somebody else"):
        let_in = knowing.encode(_image(0), registration="never", allow_foreign=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(let_in.vision_states, knowing.encode_references(_image(0)).vision_states)


def test_a_doubtful_reference_is_warned_of_and_a_good_one_is_not(knowing: Any):
    _limits(knowing, 0.8, 1.1)
    with pytest.warns(UnfamiliarReferenceWarning, match="Reference image 2"):
        knowing.encode([_image(0)] * 2, registration="never")
    _limits(knowing, 1.1, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert knowing.encode(_image(0)).num_references == 1
    assert knowing.assess(_image(0)).verdict == "good"


def test_only_doubtful_references_are_searched_unless_a_call_says_otherwise(
    knowing: Any, monkeypatch: pytest.MonkeyPatch
):
    searched = []

    def register(pipe: Any, image: Image.Image) -> Registration:
        searched.append(image)
        return Registration(_image(1), Crop(zoom=1.1), loss=1.0, loss_before=2.0)

    monkeypatch.setattr(admission, "register", register)
    _limits(knowing, 1.1, None)
    knowing.encode(_image(0))
    assert not searched
    moved = knowing.encode(_image(0), registration="always")
    assert torch.equal(moved.vision_states, knowing.encode_references(_image(1)).vision_states)
    _limits(knowing, 0.9, None)
    knowing.encode([_image(0), _image(0)])
    with pytest.warns(UnfamiliarReferenceWarning):
        knowing.encode(_image(0), registration="never")
    assert len(searched) == 3


def test_without_a_calibration_everything_is_let_in(pipe: Any):
    assert pipe.promptnet.familiarity is None
    assert pipe.assess(_image(0)).verdict is None
    assert pipe.likeness(_image(0), _image(0)) is None


def test_an_image_is_like_itself(knowing: Any):
    assert knowing.likeness(_image(0), _image(0)) == pytest.approx(1)
    assert knowing.likeness(_image(0), _image(1)) < 0.9


def test_an_unknown_registration_is_refused(pipe: Any):
    with pytest.raises(ValueError, match="registration='sometimes'"):
        pipe.encode(_image(0), registration="sometimes")


def test_what_was_measured_is_saved_and_loaded_with_the_encoder(knowing: Any, tmp_path: Path):
    known = calibrate(
        knowing, [_image(seed) for seed in range(60)], [_image(seed) for seed in range(100, 120)], num_drawn=2,
        num_inference_steps=2,
    )  # fmt: skip
    assert known.foreign is None
    assert known.alike is not None
    knowing.promptnet.familiarity = known
    knowing.promptnet.save_pretrained(tmp_path)
    read = type(knowing.promptnet).from_pretrained(tmp_path).familiarity
    assert (read.doubtful, read.alike) == (known.doubtful, known.alike)


def test_the_shipped_encoder_knows_its_avatars_finds_their_frame_and_refuses_most_photographs():
    pipe = PromptNetPipeline.from_pretrained(SHIPPED)
    avatar = sample_avatar(5, 0, "validation")
    image, fill = render_avatar(avatar), avatar.attributes.background
    known = [Frame(zoom=zoom)(image, fill) for zoom in (1.0, 0.75, 1.3)]  # frames that the encoder was trained on
    assert [pipe.assess(shown).verdict for shown in known] == ["good"] * 3
    small = Frame(zoom=0.5)(image, fill)
    assert pipe.assess(small).verdict != "good"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = admission.admit(pipe, small)[0]
    assert found.moved
    assert found.verdict == "good"
    verdicts = [pipe.assess(photograph).verdict for photograph in package_photographs()]
    assert verdicts
    assert verdicts.count("foreign") >= len(verdicts) // 2
