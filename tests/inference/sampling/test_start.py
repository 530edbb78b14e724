"""The published code's start gate: steps above a timestep are left out."""

from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor


@torch.no_grad()
def drawn_by_hand(pipe: Any, latents: Tensor, start: int, num_steps: int) -> Tensor:
    scheduler = pipe.scheduler
    scheduler.set_timesteps(num_steps)
    tokens = pipe.tokenizer(["a dog"], padding="max_length", return_tensors="pt").input_ids
    states = pipe.text_encoder(tokens).last_hidden_state
    for t in scheduler.timesteps:
        if t <= start:
            latents = scheduler.step(pipe.unet(latents, t, states).sample, t, latents).prev_sample
    return latents


@pytest.mark.parametrize("start", [1000, 600, 100])
def test_steps_above_it_are_left_out(start: int, pipe: Any) -> None:
    latents = torch.randn(1, 4, 8, 8)
    options: Any = {"num_inference_steps": 10, "guidance_scale": 1.0, "output_type": "latent"}
    found = pipe("a dog", latents=latents, start_timestep=start, **options).images
    torch.testing.assert_close(found, drawn_by_hand(pipe, latents, start, 10), rtol=1e-4, atol=1e-4)


def test_fusion_keeps_its_share_of_all_steps(pipe: Any, make_subject: Any) -> None:
    """Of ten steps the last five are executed, of which none is among the first half that is fused."""
    options: Any = {"num_inference_steps": 10, "output_type": "latent", "latents": torch.randn(1, 4, 8, 8)}
    options |= {"subject": make_subject(pipe), "start_timestep": 500}
    fused = pipe("S* on a chair", fusion_steps=1, fusion_end=0.5, **options).images
    assert torch.equal(fused, pipe("S* on a chair", fusion_steps=0, **options).images)


def test_what_cannot_be_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"start_timestep=10 leaves out every step: the last is at 99"):
        pipe("a dog", num_inference_steps=10, start_timestep=10)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="which EulerDiscreteScheduler does not allow"):
        pipe("a dog", num_inference_steps=10, start_timestep=500)
