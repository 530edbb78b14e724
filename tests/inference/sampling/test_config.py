from typing import Any

import pytest

from promptnet.inference import PUBLISHED, SamplingConfig


def test_published_values():
    """ProFusion, arXiv 2305.13579 and its code: w_f 3, w_s 5, w_c 0, gamma 0.8, eta_f 1, DDIM 50 steps."""
    found = (PUBLISHED.fusion_scale, PUBLISHED.subject_scale, PUBLISHED.class_scale, PUBLISHED.pseudo_word_scale)
    assert found == (3.0, 5.0, 0.0, 0.8)
    assert (PUBLISHED.fusion_steps, PUBLISHED.fusion_eta, PUBLISHED.fusion_end) == (1, 1.0, 1.0)
    assert (PUBLISHED.num_inference_steps, PUBLISHED.word_positions) == (50, "published")


def test_none_leaves_a_knob_as_it_is():
    config = SamplingConfig(class_scale=2.0).replaced({"class_scale": None, "fusion_steps": 0})
    assert (config.class_scale, config.fusion_steps) == (2.0, 0)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("num_inference_steps", 0),
        ("num_inference_steps", 2.5),
        ("fusion_steps", -1),
        ("fusion_steps", 0.5),
        ("subject_scale", float("nan")),
        ("class_scale", float("inf")),
        ("fusion_eta", 1.1),
        ("fusion_end", -0.1),
        ("guidance_rescale", 2.0),
        ("eta", -1.0),
        ("guidance_interval", (0.5, 0.5)),
        ("guidance_interval", (-0.1, 0.5)),
        ("guidance_interval", 0.5),
        ("guidance_interval", (0.1, 0.5, 1.0)),
        ("pseudo_word_every", 0),
        ("pseudo_word_every", 1.5),
        ("word_positions", "absolute"),
        ("encoder_input", "none"),
        ("fusion_step", 1),
    ],
)
def test_values_out_of_range_are_refused_by_name(parameter: str, value: Any):
    with pytest.raises(ValueError, match=parameter):
        SamplingConfig().replaced({parameter: value})


def test_names_in_checkpoints_of_before_are_read():
    assert SamplingConfig().replaced({"fusion_until": 0.5}).fusion_end == 0.5
