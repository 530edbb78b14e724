"""`pipe.compile()`: the same images, and nothing compiled for another person."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

FEW: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "class_scale": 2.0}
PROMPT = "a photo of S*"


@pytest.fixture
def compiled_pipe(new_pipe: Any) -> Iterator[Any]:
    """A pipeline of networks of its own, to be compiled."""
    torch.compiler.reset()
    new_pipe.set_progress_bar_config(disable=True)
    limit = torch._dynamo.config.recompile_limit
    yield new_pipe
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = limit


def draw(pipe: Any, prompt: Any = PROMPT, **more: Any) -> Any:
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **{**FEW, **more}).images


def test_images_stay_and_another_person_compiles_nothing(compiled_pipe: Any, make_subject: Any):
    pipe = compiled_pipe
    given: dict[str, Any] = {"fusion_steps": 0}
    people = [make_subject(pipe, 1, tuned=True), make_subject(pipe, 2, tuned=True), make_subject(pipe, 3)]
    expected = [draw(pipe, subject=subject, **given) for subject in people]
    plain = draw(pipe, "a dog")
    assert pipe.num_compilations == 0
    pipe.compile(backend="eager")
    counts = []
    for subject, right in zip(people, expected, strict=True):
        torch.testing.assert_close(draw(pipe, subject=subject, **given), right, rtol=1e-4, atol=1e-4)
        counts.append(pipe.num_compilations)
    assert counts == [counts[0]] * 3
    assert counts[0] > 0
    torch.testing.assert_close(draw(pipe, "a dog"), plain, rtol=1e-4, atol=1e-4)
    before = pipe.num_compilations
    draw(pipe, "a cat")
    assert pipe.num_compilations == before
    assert not any(pipe._compiled._buffers._owners)  # nobody stays


def test_adapted_sizes_are_included(compiled_pipe: Any, make_subject: Any):
    subject = make_subject(compiled_pipe, tuned=True)
    side = 2 * compiled_pipe.trained_size_px[0]
    given: dict[str, Any] = {"subject": subject, "height": side, "width": side, "fusion_steps": 0}
    expected = draw(compiled_pipe, **given)
    compiled_pipe.compile(backend="eager")
    torch.testing.assert_close(draw(compiled_pipe, **given), expected, rtol=1e-4, atol=1e-4)
    before = compiled_pipe.num_compilations
    draw(compiled_pipe, **{**given, "subject": make_subject(compiled_pipe, 2, tuned=True)})
    assert compiled_pipe.num_compilations == before


def test_a_larger_rank_and_more_images_are_drawn_too(compiled_pipe: Any, make_subject: Any):
    subject = make_subject(compiled_pipe, tuned=True)
    prompts = [PROMPT] * 9  # 27 rows of one evaluation, more than the stacks have
    expected = draw(compiled_pipe, prompts, subject=subject, fusion_steps=0)
    compiled_pipe.compile(backend="eager", rank=1)
    torch.testing.assert_close(
        draw(compiled_pipe, prompts, subject=subject, fusion_steps=0), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_customising_goes_through_compiled_blocks(compiled_pipe: Any, make_subject: Any):
    from PIL import Image

    image = Image.new("RGB", (64, 64), (200, 120, 40))
    given: dict[str, Any] = {"steps": 2, "num_views": 2, "batch_size": 1, "progress_bar": False}

    def tuned() -> Any:
        return compiled_pipe.customize(image, generator=torch.Generator().manual_seed(0), **given)

    expected = tuned()
    compiled_pipe.compile(backend="eager")
    found = tuned()
    for name, lora in expected.unet_loras.items():
        torch.testing.assert_close(found.unet_loras[name].matrix(), lora.matrix(), rtol=1e-3, atol=1e-6)


def test_what_cannot_be_compiled_is_refused(compiled_pipe: Any):
    with pytest.raises(ValueError, match=r"backend='fast' must be one of .*inductor"):
        compiled_pipe.compile(backend="fast")
    with pytest.raises(ValueError, match="rank=0"):
        compiled_pipe.compile(rank=0)
    compiled_pipe.compile(backend="eager")
    with pytest.raises(ValueError, match="compiled already"):
        compiled_pipe.compile(backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_images_of_real_backends_are_the_same(compiled_pipe: Any, make_subject: Any, backend: str):
    one, other = (make_subject(compiled_pipe, seed, tuned=True) for seed in (1, 2))
    expected = [draw(compiled_pipe, subject=subject) for subject in (one, other)]
    compiled_pipe.compile(backend)
    torch.testing.assert_close(draw(compiled_pipe, subject=one), expected[0], rtol=1e-4, atol=1e-4)
    before = compiled_pipe.num_compilations
    torch.testing.assert_close(draw(compiled_pipe, subject=other), expected[1], rtol=1e-4, atol=1e-4)
    assert compiled_pipe.num_compilations == before
