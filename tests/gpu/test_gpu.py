"""What only a GPU can show: number formats, placement, compiled code, generators on the device."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.conftest import on_gpu

pytestmark = pytest.mark.gpu

PROMPT = "a photo of S* wearing a hat"


def draw(pipe: Any, subject: Any, device: str = "cpu", **more: Any) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    given = {"num_inference_steps": 3, "output_type": "latent", "class_scale": 2.0, "fusion_steps": 1, **more}
    return pipe(PROMPT, subject=subject, generator=generator, **given).images


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal within a share of the largest value."""
    found, expected = found.float().cpu(), expected.float().cpu()
    assert found.isfinite().all()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_half_precision_is_near_float32(pipe: Any, make_subject: Any, dtype: torch.dtype, tolerance: float):
    expected = draw(pipe, make_subject(pipe, tuned=True))
    half = on_gpu(dtype)
    assert_near(draw(half, make_subject(half, tuned=True)), expected, tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_draws_finite_images(pipe: Any, make_subject: Any, dtype: torch.dtype):
    subject = make_subject(pipe, tuned=True)
    expected = draw(pipe, subject)
    with torch.autocast("cuda", dtype):
        assert_near(draw(pipe, subject), expected, 0.3)


def test_the_gpu_draws_what_the_cpu_draws(pipe: Any, make_subject: Any):
    subject = make_subject(pipe, tuned=True)
    on_device = draw(pipe, subject)
    pipe.to("cpu")
    assert_near(on_device, draw(pipe, subject), 1e-2)


def test_a_generator_on_the_device_draws_equal_images_for_equal_seeds(pipe: Any, make_subject: Any):
    subject = make_subject(pipe, tuned=True)
    one, other = (draw(pipe, subject, "cuda") for _ in range(2))
    assert torch.equal(one, other)
    assert (one - draw(pipe, subject, "cpu")).abs().max() > 0


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_parts_draw_the_same(make_subject: Any, offload: str):
    expected = draw(on_gpu(), make_subject(on_gpu(), tuned=True))
    pipe = on_gpu().to("cpu")
    subject = make_subject(pipe, tuned=True)
    getattr(pipe, offload)()
    assert_near(draw(pipe, subject), expected, 1e-2)


def test_channels_last_draws_the_same(pipe: Any, make_subject: Any):
    subject = make_subject(pipe, tuned=True)
    expected = draw(pipe, subject)
    pipe.unet.to(memory_format=torch.channels_last)
    assert_near(draw(pipe, subject), expected, 1e-2)


def test_compiled_blocks_draw_the_same_and_compile_nothing_for_another(pipe: Any, make_subject: Any):
    torch.compiler.reset()
    one, other = (make_subject(pipe, seed, tuned=True) for seed in (1, 2))
    expected = [draw(pipe, subject) for subject in (one, other)]
    pipe.compile()
    assert_near(draw(pipe, one), expected[0], 1e-2)
    before = pipe.num_compilations
    assert_near(draw(pipe, other), expected[1], 1e-2)
    assert pipe.num_compilations == before


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_multistep_solvers_are_fused_on_the_gpu(pipe: Any, make_subject: Any, name: str):
    import diffusers

    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    subject = make_subject(pipe, tuned=True)
    given: dict[str, Any] = {"num_inference_steps": 6, "fusion_end": 0.5}
    on_device = draw(pipe, subject, **given)
    pipe.to("cpu")
    assert_near(on_device, draw(pipe, subject, **given), 1e-2)
