"""What an adaptation owns: the network that is really called, by whom and in whatever state it is then."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionControlNetPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)
from torch import Tensor

from promptnet.inference.resolution import adapt_resolution, redilated_conv2d

WIDTH = 16
SIZE: Any = {"height": 64, "width": 48}  # trained at 32: latents 16x16, two pixels each
DAMPED: Any = {"factors": {"mid_block": 2}, "active_steps": 50, "damped_factors": {"mid_block": 3}, "damped_steps": 50}
ALL: Any = {"down_blocks": 2, "mid_block": 2, "up_blocks": 2}


@pytest.fixture(scope="module")
def vae() -> Any:
    torch.manual_seed(5)
    two: Any = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    two["block_out_channels"] = (4, 4)
    return AutoencoderKL(**two, norm_num_groups=2, latent_channels=4).eval()


def scheduler(**more: Any) -> Any:
    return DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear", **more)


@pytest.fixture
def pipe(vae: Any, make_unet: Any) -> Any:
    return quiet(StableDiffusionPipeline(vae, None, None, make_unet(), scheduler(), None, None, None, False))  # type: ignore[arg-type]


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, *, scale: float = 7.5, steps: int = 3, rows: int = 1, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    states = torch.randn(2 * rows, 5, WIDTH, generator=generator)
    latents = torch.randn(rows, 4, 32, 24, generator=generator)
    options = {**SIZE, "num_inference_steps": steps, "output_type": "latent", "latents": latents, **options}
    generated = pipe(prompt_embeds=states[:rows], negative_prompt_embeds=states[rows:], guidance_scale=scale, **options)
    return generated.images


# -- pipelines that share a network -----------------------------------------------------------------------------------


def test_each_pipeline_has_its_own_guidance_and_steps(pipe: Any) -> None:
    """Made before or after, called before or after, with the first one gone."""
    settings = {**DAMPED, "active_steps": 25, "damped_steps": 25}
    with adapt_resolution(pipe, **SIZE, settings=settings, num_inference_steps=3):
        expected = {(scale, rows): draw(pipe, scale=scale, rows=rows) for scale in (7.5, 1.0) for rows in (1, 2)}
        for asked in expected:
            sibling = quiet(StableDiffusionPipeline.from_pipe(pipe, scheduler=scheduler()))
            draw(pipe, scale=1.0 if asked[0] > 1 else 7.5)  # what the first one did last is no matter
            assert torch.equal(draw(sibling, scale=asked[0], rows=asked[1]), expected[asked])
    handle = adapt_resolution(pipe, **SIZE, settings=settings, num_inference_steps=3)
    sibling = quiet(StableDiffusionPipeline.from_pipe(pipe))
    del pipe
    assert torch.equal(draw(sibling), expected[7.5, 1])  # the first was never called
    handle.remove()


def test_two_images_from_the_same_noise_are_not_taken_for_guidance(pipe: Any) -> None:
    noise = torch.randn(1, 4, 32, 24).expand(2, -1, -1, -1)
    undamped = {**DAMPED, "damped_steps": 0}
    with adapt_resolution(pipe, **SIZE, settings=undamped, num_inference_steps=3):
        expected = draw(pipe, scale=1.0, rows=2, latents=noise)
    with adapt_resolution(pipe, **SIZE, settings=DAMPED, num_inference_steps=3):
        assert torch.equal(draw(pipe, scale=1.0, rows=2, latents=noise), expected)


@pytest.mark.parametrize("told", [False, True])
def test_a_loop_of_ones_own(pipe: Any, told: bool) -> None:
    """Guided with the latents twice, at timesteps that the pipeline's scheduler does not have."""
    own, settings = scheduler(timestep_spacing="trailing"), {**DAMPED, "active_steps": 25, "damped_steps": 25}
    own.set_timesteps(4)
    generator = torch.Generator().manual_seed(9)
    states, noise = torch.randn(2, 5, WIDTH, generator=generator), torch.randn(1, 4, 32, 24, generator=generator)

    @torch.no_grad()
    def generated() -> Tensor:
        x = noise
        for t in own.timesteps:
            uncond, prompt = pipe.unet(x.repeat(2, 1, 1, 1), t, encoder_hidden_states=states.flip(0)).sample.chunk(2)
            x = own.step(uncond + 7.5 * (prompt - uncond), t, x).prev_sample
        return x

    sibling = quiet(StableDiffusionPipeline.from_pipe(pipe, scheduler=copy.deepcopy(own)))
    timesteps = own.timesteps if told else None
    with adapt_resolution(pipe, **SIZE, settings=settings, num_inference_steps=4, timesteps=timesteps):
        pipe.scheduler.set_timesteps(3)
        torch.testing.assert_close(generated(), draw(sibling, steps=4), rtol=1e-4, atol=1e-4)


def test_pipelines_that_cannot_be_damped_say_so_when_they_call(pipe: Any) -> None:
    with adapt_resolution(pipe, **SIZE, settings=DAMPED, num_inference_steps=3):
        sibling = quiet(StableDiffusionPAGPipeline.from_pipe(pipe, pag_applied_layers="mid"))
        with pytest.warns(UserWarning, match="StableDiffusionPAGPipeline does not call its U-Net"):
            draw(sibling)


def test_siblings_in_threads_are_what_they_are_alone(pipe: Any) -> None:
    ways: Any = [{"scale": 7.5}, {"scale": 1.0}, {"scale": 1.0, "rows": 2}, {"scale": 3.0, "rows": 2}]
    siblings = [quiet(StableDiffusionPipeline.from_pipe(pipe, scheduler=scheduler())) for _ in ways]
    torch.set_num_threads(1)
    with adapt_resolution(pipe, **SIZE, settings=DAMPED, num_inference_steps=3), ThreadPoolExecutor(4) as pool:
        alone = [draw(sibling, **way) for sibling, way in zip(siblings, ways, strict=True)]
        for _ in range(2):
            calls = [pool.submit(draw, sibling, **way) for sibling, way in zip(siblings, ways, strict=True)]
            assert all(torch.equal(call.result(), right) for call, right in zip(calls, alone, strict=True))


# -- copies, replaced parts, handles ----------------------------------------------------------------------------------


def test_copies_are_adapted_as_long_as_the_original_is(pipe: Any) -> None:
    plain = draw(pipe)
    with adapt_resolution(pipe, **SIZE, settings={"factors": ALL}, num_inference_steps=3):
        adapted = draw(pipe)
        shallow, deep = copy.copy(pipe), copy.deepcopy(pipe)
        assert torch.equal(draw(shallow), adapted)
        assert torch.equal(draw(deep), adapted)
        with adapt_resolution(deep, **SIZE, settings={"factors": {"mid_block": 3}}, num_inference_steps=3):
            assert not torch.equal(draw(deep), adapted)
            assert torch.equal(draw(pipe), adapted)
    assert not torch.equal(adapted, plain)
    assert all(torch.equal(draw(each), plain) for each in (pipe, shallow, deep))


def test_a_replaced_unet_is_refused(pipe: Any, make_unet: Any) -> None:
    handle = adapt_resolution(pipe, **SIZE, num_inference_steps=3)
    first, pipe.unet = pipe.unet, make_unet(seed=1)
    assert "was replaced" in handle.explain()
    with pytest.raises(ValueError, match=r"U-Net of this StableDiffusionPipeline was replaced"):
        draw(pipe)
    pipe.unet = first
    adapted = draw(pipe)
    handle.remove()
    assert not torch.equal(draw(pipe), adapted)
    pipe.unet = make_unet(seed=1)
    assert draw(pipe).isfinite().all()


def test_a_unet_of_another_class_made_of_an_adapted_one_is_refused(pipe: Any) -> None:
    motion: Any = {"block_out_channels": (8,) * 4, "motion_layers_per_block": 1}
    adapter = MotionAdapter(**motion, motion_norm_num_groups=2, motion_num_attention_heads=2)
    with adapt_resolution(pipe, **SIZE), pytest.raises(ValueError, match="what is made of its weights would be plain"):
        AnimateDiffPipeline.from_pipe(pipe, motion_adapter=adapter)
    AnimateDiffPipeline.from_pipe(pipe, motion_adapter=adapter)


def test_a_removed_handle_is_not_entered_again(pipe: Any) -> None:
    with adapt_resolution(pipe, **SIZE) as handle:
        pass
    assert "removed, nothing is adapted" in handle.explain()
    with pytest.raises(ValueError, match="was removed"):
        handle.__enter__()


def test_a_handle_of_the_trained_size_refuses_others(pipe: Any) -> None:
    with adapt_resolution(pipe, 32, 32), pytest.raises(ValueError, match=r"adapted for 32x32 pixels.*24x32"):
        draw(pipe)


def test_another_number_of_steps_is_said(pipe: Any) -> None:
    with adapt_resolution(pipe, **SIZE, num_inference_steps=4):
        with pytest.warns(UserWarning, match=r"num_inference_steps=4, but this drawing has 3 steps"):
            draw(pipe, steps=3)
        draw(pipe, steps=4)


# -- ControlNets ------------------------------------------------------------------------------------------------------


def controlled(pipe: Any, controlnet: Any, unet: Any = None) -> Any:
    parts: Any = [pipe.vae, None, None, unet or pipe.unet, controlnet, scheduler(), None, None]
    return quiet(StableDiffusionControlNetPipeline(*parts, requires_safety_checker=False))


def control(unet: Any) -> Any:
    torch.manual_seed(6)
    network: Any = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4)).eval()
    for module in network.controlnet_down_blocks:  # they start at zero
        torch.nn.init.normal_(module.weight)
    return network


def test_a_controlnet_of_several_pipelines_is_adapted_for_those_that_are(pipe: Any, make_unet: Any) -> None:
    image: Any = {"image": torch.rand(1, 3, 64, 48)}
    network = control(pipe.unet)
    adapted, plain = controlled(pipe, network), controlled(pipe, network, make_unet(seed=2))
    expected = draw(plain, **image)
    with adapt_resolution(adapted, **SIZE, settings={"factors": ALL}, num_inference_steps=3):
        first = draw(adapted, **image)
        assert torch.equal(draw(plain, **image), expected)
        small = draw(plain, image=torch.rand(1, 3, 32, 32), height=32, width=32, latents=torch.randn(1, 4, 16, 16))
        assert small.isfinite().all()
        with adapt_resolution(plain, **SIZE, settings={"factors": {"mid_block": 3}}, num_inference_steps=3):
            assert not torch.equal(draw(plain, **image), expected)
            assert torch.equal(draw(adapted, **image), first)


def test_a_controlnet_that_came_later_is_refused(pipe: Any) -> None:
    network = control(pipe.unet)
    with adapt_resolution(pipe, **SIZE, num_inference_steps=3) as handle:
        with pytest.raises(ValueError, match="not its ControlNet"):
            draw(controlled(pipe, network), image=torch.rand(1, 3, 64, 48))
        assert torch.isfinite(draw(pipe)).all()
        assert handle.is_active


# -- layers that are not what they were -------------------------------------------------------------------------------


def circular(unet: Any, mode: str) -> None:
    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding_mode = mode  # type: ignore[assignment]


@pytest.mark.parametrize("before", [True, False])
def test_seamless_tiling_is_adapted_and_stays_seamless(unet: Any, call_unet: Any, before: bool) -> None:
    """Moved around, the image is moved around: no place is a border."""
    settings = {"factors": {"mid_block": 2, "up_blocks.0": 2}, "attention": False}
    circular(unet, "circular")
    plain = call_unet(unet)
    if not before:
        circular(unet, "zeros")
    x, states = torch.randn(1, 4, 32, 32), torch.randn(1, 5, WIDTH)
    with adapt_resolution(unet, 256, 256, settings=settings), torch.no_grad():
        circular(unet, "circular")
        assert not torch.equal(call_unet(unet), plain)
        found = unet(x, 999, states).sample
        around = unet(x.roll((16, 8), (2, 3)), 999, states).sample
    torch.testing.assert_close(around, found.roll((16, 8), (2, 3)), rtol=1e-4, atol=1e-4)


def test_a_circular_convolution_that_resizes_has_no_border() -> None:
    x, weight = torch.randn(1, 2, 12, 9), torch.randn(3, 2, 3, 3)
    options: Any = {"factor": 1.5, "padding_mode": "circular"}
    found = redilated_conv2d(x.roll((3, 6), (2, 3)), weight, **options)
    expected = redilated_conv2d(x, weight, **options).roll((3, 6), (2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_whose_class_or_convolution_is_replaced_is_refused(unet: Any, call_unet: Any) -> None:
    class Tiled(torch.nn.Conv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(input, weight, bias)

    class Wrapped(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    resnet = unet.mid_block.resnets[0]
    with adapt_resolution(unet, 256, 256, settings={"factors": ALL}) as handle:
        call_unet(unet)
        resnet.conv1.__class__ = Tiled
        assert "mid_block.resnets.0.conv1 already has a convolution" in handle.explain()
        with pytest.raises(ValueError, match=r"mid_block\.resnets\.0\.conv1 already has a convolution"):
            call_unet(unet)
        resnet.conv1 = Wrapped()
        assert "somebody has replaced it" in handle.explain()
        with pytest.raises(ValueError, match=r"mid_block\.resnets\.0\.conv1 .* somebody has replaced it"):
            call_unet(unet)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA"])
def test_adapters_that_convolve_by_themselves_are_refused_until_merged(kind: str, unet: Any, call_unet: Any) -> None:
    import peft

    config: Any = peft.LoraConfig if kind == "DoRA" else getattr(peft, f"{kind}Config")
    options: Any = {"use_dora": True, "init_lora_weights": False} if kind == "DoRA" else {"init_weights": False}
    unet.add_adapter(config(r=2, target_modules=["conv1"], **options))
    unet.requires_grad_(False).eval()
    layers = [module for module in unet.modules() if hasattr(module, "base_layer")]
    with adapt_resolution(unet, 256, 256, settings={"factors": ALL, "attention": False}):
        with pytest.raises(ValueError, match=r"conv1 has an adapter that convolves by itself"):
            call_unet(unet)
        for layer in layers:
            layer.merge()
        merged = call_unet(unet)
        for layer in layers:
            layer.unmerge()
            layer.enable_adapters(False)
        assert not torch.equal(call_unet(unet), merged)


def test_a_forward_around_a_layer_that_convolves_beside_it_is_an_error(unet: Any, call_unet: Any) -> None:
    """As LyCORIS puts it there."""
    conv = unet.mid_block.resnets[0].conv1
    own = conv.forward
    conv.forward = lambda x: own(x) + torch.nn.functional.conv2d(x, conv.weight, padding=1)
    with (
        adapt_resolution(unet, 256, 256, settings={"factors": ALL}),
        pytest.raises(RuntimeError, match=r"mid_block\.resnets\.0\.conv1 has a forward of somebody else's"),
    ):
        call_unet(unet)


def test_unets_without_a_mid_block(make_unet: Any, call_unet: Any) -> None:
    """As BK-SDM's small ones."""
    unet = make_unet(mid_block_type=None)
    plain = call_unet(unet)
    with adapt_resolution(unet, 256, 256) as handle:
        assert not torch.equal(call_unet(unet), plain)
        assert "mid_block" not in handle.explain()
    for size_px in (64, 512):
        adapt_resolution(unet, size_px, size_px).remove()
    with pytest.warns(UserWarning, match="not damped"):
        adapt_resolution(unet, 2048, 2048, trained_size=512).remove()


def test_gligens_boxes_are_left_alone(make_unet: Any) -> None:
    from promptnet.inference.resolution.layers import spatial_attentions

    unet = make_unet(2, attention_type="gated", cross_attention_dim=WIDTH)
    names = [*spatial_attentions(unet)]
    assert names
    assert not [name for name in names if "fuser" in name]


# -- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["second size", "dynamic", "blocks"])
def test_whole_graphs_at_sizes_that_change(way: str, make_unet: Any, call_unet: Any) -> None:
    torch.compiler.reset()
    unet = compiled = make_unet(2 if way == "blocks" else 1)
    small = call_unet(unet, 16, 16)
    with adapt_resolution(unet, 256, 192):
        expected = call_unet(unet, 32, 24)
    if way == "blocks":
        unet.compile_repeated_blocks(backend="eager", fullgraph=True)
    else:
        compiled = torch.compile(unet, backend="eager", fullgraph=True, dynamic=way == "dynamic" or None)
    torch.testing.assert_close(call_unet(compiled, 16, 16), small, rtol=1e-5, atol=1e-5)
    with adapt_resolution(compiled, 256, 192):
        torch.testing.assert_close(call_unet(compiled, 32, 24), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(call_unet(compiled, 16, 16), small, rtol=1e-5, atol=1e-5)
