"""Real diffusers pipelines of each architecture, with random weights, adapted by one line and undone."""

import functools
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
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
)

from promptnet.inference.resolution import adapt_resolution

WIDTH = 16  # of the text's states
HEIGHT_PX, WIDTH_PX = 64, 48  # trained at 32: latents 16x16, two pixels each
DAMPED = {"factors": {"mid_block": 2}, "active_steps": 1, "damped_factors": {"mid_block": 3}, "damped_steps": 1}


def scheduler(prediction: Any = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(prediction_type=prediction, clip_sample=False, beta_schedule="scaled_linear")


@functools.cache
def vae() -> AutoencoderKL:
    torch.manual_seed(5)
    two: Any = {
        "block_out_channels": (4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(**two, norm_num_groups=2, latent_channels=4, sample_size=32).eval()


def sd(make_unet: Any, prediction: str = "epsilon", **unet: Any) -> Any:
    parts: Any = [vae(), None, None, make_unet(**unet), scheduler(prediction), None, None]
    return StableDiffusionPipeline(*parts, requires_safety_checker=False)


def xl_unet(make_unet: Any) -> Any:
    added: Any = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return make_unet(3, **added, projection_class_embeddings_input_dim=WIDTH + 24, use_linear_projection=True)


def sdxl(make_unet: Any) -> Any:
    parts: Any = [vae(), None, None, None, None, xl_unet(make_unet), scheduler()]
    return StableDiffusionXLPipeline(*parts, add_watermarker=False)


def controlnet(unet: Any) -> Any:
    torch.manual_seed(6)
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4)).eval()
    for module in network.controlnet_down_blocks:  # they start at zero
        torch.nn.init.normal_(module.weight)  # type: ignore[arg-type]
    return network


def sd_controlnet(make_unet: Any) -> Any:
    unet = make_unet()
    parts: Any = [vae(), None, None, unet, controlnet(unet), scheduler(), None, None]
    return StableDiffusionControlNetPipeline(*parts, requires_safety_checker=False)


def sdxl_controlnet(make_unet: Any) -> Any:
    unet = xl_unet(make_unet)
    parts: Any = [vae(), None, None, None, None, unet, controlnet(unet), scheduler()]
    return StableDiffusionXLControlNetPipeline(*parts, add_watermarker=False)


def animatediff(make_unet: Any) -> Any:
    torch.manual_seed(7)
    adapter = MotionAdapter(
        block_out_channels=(8,) * 4, motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    parts: Any = [vae(), None, None, make_unet(), adapter, scheduler()]
    return AnimateDiffPipeline(*parts)


def text_to_video(make_unet: Any) -> Any:
    torch.manual_seed(8)
    unet = UNet3DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )
    for module in unet.modules():  # temporal layers start at zero
        for parameter in module.parameters(recurse=False):
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    parts: Any = [vae(), None, None, unet.eval(), scheduler()]
    return TextToVideoSDPipeline(*parts)


FAMILIES = {
    "sd1": sd,
    "sd2": functools.partial(sd, use_linear_projection=True),
    "sd2-v": functools.partial(sd, prediction="v_prediction", use_linear_projection=True),
    "sdxl": sdxl,
    "sd-controlnet": sd_controlnet,
    "sdxl-controlnet": sdxl_controlnet,
    "animatediff": animatediff,
    "text-to-video": text_to_video,
}


def draw(pipe: Any, height: int = HEIGHT_PX, width: int = WIDTH_PX, steps: int = 2) -> torch.Tensor:
    """Pictures (N, 3, H, W), or videos (N, F, 3, H, W)."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(9)
    states = torch.randn(2, 5, WIDTH, generator=generator)
    options: dict[str, Any] = {"prompt_embeds": states[:1], "negative_prompt_embeds": states[1:]}
    kind = type(pipe).__name__
    if "XL" in kind:
        options |= {"pooled_prompt_embeds": states[:1, 0], "negative_pooled_prompt_embeds": states[1:, 0]}
    if "ControlNet" in kind:
        options["image"] = torch.rand(1, 3, height, width, generator=generator)
    if kind in ("AnimateDiffPipeline", "TextToVideoSDPipeline"):
        options["num_frames"] = 2
    drawn: Any = pipe(
        height=height, width=width, num_inference_steps=steps, generator=generator, output_type="pt", **options
    )
    return drawn.frames if hasattr(drawn, "frames") else drawn.images


@pytest.mark.parametrize("family", FAMILIES)
def test_any_pipeline_is_adapted_and_undone(family: str, make_unet: Any) -> None:
    pipe = FAMILIES[family](make_unet)
    plain = draw(pipe)
    state = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with adapt_resolution(pipe, HEIGHT_PX, WIDTH_PX, num_inference_steps=2) as handle:
        adapted = draw(pipe)
        assert "depth" in handle.explain()
    assert adapted.shape[-2:] == (HEIGHT_PX, WIDTH_PX)
    assert adapted.isfinite().all()
    assert (adapted - plain).abs().max() > 1e-4
    assert torch.equal(draw(pipe), plain)
    assert all(torch.equal(value, state[name]) for name, value in pipe.unet.state_dict().items())


@pytest.mark.parametrize("family", ["sdxl", "sd-controlnet", "animatediff"])
def test_noise_damped_guidance_on_any_pipeline(family: str, make_unet: Any) -> None:
    pipe = FAMILIES[family](make_unet)
    undamped = {**DAMPED, "damped_steps": 0}  # said, so that it is not all
    with adapt_resolution(pipe, HEIGHT_PX, WIDTH_PX, num_inference_steps=2, settings=undamped):
        without = draw(pipe)
    with adapt_resolution(pipe, HEIGHT_PX, WIDTH_PX, num_inference_steps=2, settings={**DAMPED, "num_steps": 2}) as h:
        assert h.damps_guidance
        damped = draw(pipe)
    assert damped.isfinite().all()
    assert (damped - without).abs().max() > 1e-4


def test_only_spatial_layers_of_video_networks_are_adapted(make_unet: Any) -> None:
    from promptnet.inference.resolution.layers import spatial_attentions, spatial_convolutions

    for pipe in (animatediff(make_unet), text_to_video(make_unet)):
        names = [*spatial_convolutions(pipe.unet), *spatial_attentions(pipe.unet)]
        assert any("attentions.0.transformer_blocks.0.attn1" in name for name in names)
        assert not [name for name in names if "motion" in name or "temp" in name or "transformer_in" in name]


def test_the_controlnet_is_adapted_with_its_unet(make_unet: Any) -> None:
    pipe = sd_controlnet(make_unet)
    seen: list[bool] = []
    conv = pipe.controlnet.mid_block.resnets[0].conv1
    hook = conv.register_forward_hook(lambda module, *_: seen.append("_conv_forward" in vars(module)))
    settings = {"factors": {"mid_block": 2}, "active_steps": 1, "num_steps": 2}
    with adapt_resolution(pipe, HEIGHT_PX, WIDTH_PX, settings=settings, num_inference_steps=2):
        draw(pipe)
    draw(pipe)
    hook.remove()
    assert seen == [True, False, False, False]  # the first of two steps; then plain


def test_whether_it_acts_is_decided_from_the_pipelines_timesteps(make_unet: Any) -> None:
    pipe = sd(make_unet)
    handle = adapt_resolution(pipe, HEIGHT_PX, WIDTH_PX, num_inference_steps=30)
    pipe.scheduler.set_timesteps(30)
    shares = [handle.share(timestep) for timestep in pipe.scheduler.timesteps]
    assert shares == [index / 30 for index in range(30)]
    assert handle.share(pipe.scheduler.timesteps[7]) == 7 / 30  # again, and out of order
    handle.remove()
