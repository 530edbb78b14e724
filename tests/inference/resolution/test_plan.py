import functools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from promptnet.images.crop import fitted
from promptnet.inference.resolution.adapt import adapt_resolution
from promptnet.inference.resolution.plan import SizePlan, plan_size
from tests.inference.resolution.slots import is_asked


def rules_for_size(unet: Any, resolution: Any, **sizes: Any) -> list[Any]:
    return plan_size(unet, resolution, **sizes).rules


SIZES: Any = {"trained_size_px": (128, 128), "num_inference_steps": 20}
STEPS: Any = {"num_inference_steps": 2, "output_type": "np"}


def test_near_the_trained_size_auto_has_no_rules(unet: Any, make_unet: Any) -> None:
    assert rules_for_size(unet, "auto", size_px=(128, 128), **SIZES) == []
    assert len(rules_for_size(unet, "auto", size_px=(256, 256), **SIZES)) == 1
    assert len(rules_for_size(unet, "auto", size_px=(512, 512), **SIZES)) == 1  # few latents: not damped
    large: Any = {**SIZES, "trained_size_px": (512, 512)}
    assert len(rules_for_size(make_unet(sample_size=64), "auto", size_px=(2048, 2048), **large)) == 2  # damped too
    assert rules_for_size(unet, "off", size_px=(512, 512), **SIZES) == []


def test_a_network_adapted_by_hand_is_not_adapted_twice(unet: Any) -> None:
    with adapt_resolution(unet, 256, 256):
        assert rules_for_size(unet, "auto", size_px=(256, 256), **SIZES) == []
        with pytest.raises(ValueError, match="remove"):
            rules_for_size(unet, "published:sd21-2048x2048", size_px=(2048, 2048), **SIZES)


def draw(pipe: Any, height: int, width: int, **options: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe(
        options.pop("prompt", "a hat"), height=height, width=width, generator=generator, **STEPS, **options
    ).images


def test_the_trained_size_is_drawn_bit_for_bit_as_without(pipe: Any) -> None:
    assert np.array_equal(draw(pipe, 16, 16), draw(pipe, 16, 16, resolution="off"))


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (24, 40), (64, 64)])
def test_other_sizes_are_adapted_unless_it_is_off(size: Any, pipe: Any) -> None:
    adapted = draw(pipe, *size)
    assert adapted.shape == (1, *size, 3)
    assert np.isfinite(adapted).all()
    assert not np.array_equal(adapted, draw(pipe, *size, resolution="off"))


@pytest.mark.parametrize(
    ("size", "generated"),
    [((8, 8), (16, 16)), ((4, 8), (16, 32)), ((12, 8), (24, 16)), ((32, 32), (16, 16)), ((40, 24), (28, 16))],
)
def test_few_latents_are_drawn_with_the_shorter_side_as_trained_and_resized(
    size: Any, generated: Any, pipe: Any
) -> None:
    seen: list[Any] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    found = draw(pipe, *size)
    hook.remove()
    assert {shape[-2:] for shape in seen} == {(generated[0] // 2, generated[1] // 2)}
    assert found.shape == (1, *size, 3)
    as_drawn = torch.from_numpy(draw(pipe, *generated)).permute(0, 3, 1, 2)
    expected = fitted(as_drawn, size).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected.clamp(0, 1), atol=1e-6)


def test_more_latents_are_drawn_as_large_as_asked_and_not_much_smaller(make_unet: Any) -> None:
    options: Any = {**SIZES, "trained_size_px": (512, 512), "multiple_px": 64}
    sizes: Any = {(1024, 1024): (1024, 1024), (512, 768): (512, 768), (256, 256): (512, 512), (128, 256): (256, 512)}
    for size_px, sampled_px in sizes.items():
        assert plan_size(make_unet(sample_size=64), "auto", size_px=size_px, **options).sampled_px == sampled_px


def test_latents_of_much_smaller_images_are_as_small_as_asked(pipe: Any) -> None:
    options: Any = {"height": 8, "width": 8, "num_inference_steps": 2}
    latents = pipe("a hat", output_type="latent", **options).images
    assert latents.shape[-2:] == (4, 4)
    assert pipe("a hat", latents=latents, output_type="np", **options).images.shape == (1, 8, 8, 3)


def test_own_settings_may_say_where_it_is_drawn(unet: Any) -> None:
    settings = {"drawn_size_px": [256, 192], "attention": False}
    assert plan_size(unet, settings, size_px=(128, 96), **SIZES) == SizePlan((256, 192), [])
    with pytest.raises(ValueError, match=r"draws at 192x256 .* only PromptNetPipeline"):
        adapt_resolution(unet, 128, 96, settings=settings)


def test_subjects_and_plain_prompts_in_one_batch(pipe: Any, make_subject: Any) -> None:
    """A tuned subject, fusion and damping at four times the size; the plain row is what it is alone."""
    subject = make_subject(pipe, tuned=True)
    options: Any = {"num_inference_steps": 2, "output_type": "np", "height": 64, "width": 64}
    noise = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(4))
    both = pipe(["S* on a chair", "a hat"], subject=[subject, None], class_scale=2.0, latents=noise, **options).images
    alone = pipe("a hat", latents=noise[1:], **options).images
    assert np.isfinite(both).all()
    np.testing.assert_allclose(both[1], alone[0], atol=2e-4)
    assert UNet2DConditionModel in type(pipe.unet).__mro__
    assert not any(map(is_asked, pipe.unet.modules()))


@pytest.mark.parametrize("resolution", ["auto", "off"])
def test_promptnet_runs_at_its_trained_size_in_plain_mode(resolution: str, pipe: Any, make_subject: Any) -> None:
    """While the U-Net, which is watched the same way, does neither."""
    sizes: dict[str, set[Any]] = {"promptnet": set(), "unet": set()}
    adapted: dict[str, set[bool]] = {"promptnet": set(), "unet": set()}

    def watch(name: str, module: torch.nn.Module, inputs: Any) -> None:
        adapted[name].add(is_asked(module))
        if module in entrances:
            sizes[name].add(tuple(inputs[0].shape[-2:]))

    entrances = {pipe.promptnet.conv_in, pipe.unet.conv_in}
    hooks = [
        module.register_forward_pre_hook(functools.partial(watch, name))
        for name in sizes
        for module in getattr(pipe, name).modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    draw(pipe, 16, 32, prompt="S*", subject=make_subject(pipe), resolution=resolution)
    for hook in hooks:
        hook.remove()
    assert sizes == {"promptnet": {(8, 8)}, "unet": {(8, 16)}}
    assert adapted == {"promptnet": {False}, "unet": {False, True} if resolution == "auto" else {False}}


def test_own_settings_and_mistakes_in_them(pipe: Any) -> None:
    own = draw(pipe, 32, 32, resolution={"factors": {"mid_block": 2}, "active_steps": 50})
    assert not np.array_equal(own, draw(pipe, 32, 32, resolution="off"))
    with pytest.raises(ValueError, match=r"mid_block\.resnets\.9"):
        draw(pipe, 32, 32, resolution={"factors": {"mid_block.resnets.9": 2}})
    with pytest.raises(ValueError, match="settings='on'"):
        draw(pipe, 32, 32, resolution="on")
