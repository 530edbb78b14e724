"""Real diffusers pipelines of each architecture, with random weights, adapted by one line and undone."""

import functools
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
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
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)

from promptnet.inference.resolution import adapt_resolution
from promptnet.inference.resolution.adapt import active_handle
from promptnet.inference.resolution.damped_batch import has_halves
from tests.inference.resolution.slots import is_asked

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


def xl_unet(make_unet: Any, **more: Any) -> Any:
    """No attention in the outermost blocks, more of it in the deepest, two layers each."""
    added: Any = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return make_unet(
        3,
        **added,
        **more,
        projection_class_embeddings_input_dim=WIDTH + 24,
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
    )


def sdxl(make_unet: Any, text: tuple[Any, ...] = (None,) * 4, **unet: Any) -> Any:
    parts: Any = [vae(), *text, xl_unet(make_unet, **unet), scheduler()]
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
    """Images (N, 3, H, W), or videos (N, F, 3, H, W)."""
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
    generated: Any = pipe(
        height=height, width=width, num_inference_steps=steps, generator=generator, output_type="pt", **options
    )
    return generated.frames if hasattr(generated, "frames") else generated.images


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    """Of the U-Net and, where there is one, the ControlNet."""
    networks = [pipe.unet, *filter(None, [getattr(pipe, "controlnet", None)])]
    return {f"{i}.{key}": value.clone() for i, net in enumerate(networks) for key, value in net.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_pipeline_is_adapted_and_undone(family: str, make_unet: Any) -> None:
    pipe = FAMILIES[family](make_unet)
    plain = draw(pipe)
    state = weights(pipe)
    with adapt_resolution(pipe, HEIGHT_PX, WIDTH_PX, num_inference_steps=2) as handle:
        adapted = draw(pipe)
        assert "depth" in handle.explain()
    assert adapted.shape[-2:] == (HEIGHT_PX, WIDTH_PX)
    assert adapted.isfinite().all()
    assert (adapted - plain).abs().max() > 1e-4
    assert torch.equal(draw(pipe), plain)
    assert state.keys() == weights(pipe).keys()
    assert all(torch.equal(value, state[name]) for name, value in weights(pipe).items())
    assert not any(map(is_asked, pipe.unet.modules()))


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


def test_four_times_a_large_trained_size_is_damped_by_auto(make_unet: Any) -> None:
    """Trained on more latents a side than `auto` calls few."""
    pipe = sdxl(make_unet, sample_size=36)
    with adapt_resolution(pipe, 288, 288, num_inference_steps=2) as handle:
        assert handle.settings.progressive == "capped"
        assert handle.damps_guidance
        damped = draw(pipe, 288, 288, steps=1)
    with adapt_resolution(pipe, 288, 288, num_inference_steps=2, settings=replace(handle.settings, damped_steps=0)):
        undamped = draw(pipe, 288, 288, steps=1)
    assert damped.isfinite().all()
    assert (damped - undamped).abs().max() > 1e-4


def test_a_damped_image_is_the_formula_with_three_items_a_step(make_unet: Any) -> None:
    """e_u^damped + w (e_c - e_u), by hand, for two images in a batch."""
    pipe: Any = sd(make_unet)
    rows: list[int] = []
    noise, states = torch.randn(2, 4, 32, 24), torch.randn(2, 5, WIDTH)
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    options: Any = {"num_images_per_prompt": 2, "guidance_scale": 7.5, "num_inference_steps": 3, "latents": noise}
    options |= {"prompt_embeds": states[:1], "negative_prompt_embeds": states[1:], "output_type": "latent"}
    settings = {**DAMPED, "active_steps": 2, "damped_steps": 2, "num_steps": 3}
    with adapt_resolution(pipe, HEIGHT_PX, WIDTH_PX, settings=settings, num_inference_steps=3) as handle:
        found = pipe(height=HEIGHT_PX, width=WIDTH_PX, **options).images
    hook.remove()
    assert rows == [4, 2, 4, 2, 4]  # the last step is not damped

    adapted, damped = handle.adaptation.modes()
    x, prompt, negative = noise, *(states[i : i + 1].expand(2, -1, -1) for i in (0, 1))

    @torch.no_grad()
    def noise_of(mode: Any, states: torch.Tensor, share: float) -> torch.Tensor:
        with mode.at(pipe.unet, share):
            return pipe.unet(x, t, encoder_hidden_states=states).sample

    pipe.scheduler.set_timesteps(3)
    for index, t in enumerate(pipe.scheduler.timesteps):
        share = index / 3
        e_u, e_c = noise_of(adapted, negative, share), noise_of(adapted, prompt, share)
        base = noise_of(damped, negative, share) if index < 2 else e_u
        x = pipe.scheduler.step(base + 7.5 * (e_c - e_u), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


def test_guidance_of_three_rows_a_image_is_not_damped(make_unet: Any) -> None:
    """Perturbed attention has a third row: two images have halves, but not those."""
    parts: Any = [vae(), None, None, make_unet(), scheduler(), None, None]
    pipe: Any = StableDiffusionPAGPipeline(*parts, requires_safety_checker=False, pag_applied_layers="mid")
    options: Any = {"prompt_embeds": torch.randn(2, 5, WIDTH), "negative_prompt_embeds": torch.randn(2, 5, WIDTH)}
    options |= {"latents": torch.randn(2, 4, 32, 24), "output_type": "pt", "num_inference_steps": 1}
    images = []
    for settings in (DAMPED, {**DAMPED, "damped_steps": 0}):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            handle = adapt_resolution(pipe, HEIGHT_PX, WIDTH_PX, settings=settings)
        assert any("guidance is not damped" in str(each.message) for each in said) == bool(settings["damped_steps"])
        with handle:
            images.append(pipe(height=HEIGHT_PX, width=WIDTH_PX, **options).images)
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("name", "halves"),
    [("StableDiffusion", True), ("StableDiffusionXL", True), ("StableDiffusionXLControlNet", True)]
    + [("AnimateDiff", True), ("StableDiffusionXLInpaint", True), ("StableDiffusionXLPAG", False)]
    + [("StableDiffusionInstructPix2Pix", False), ("StableDiffusionXLInstructPix2Pix", False)]
    + [("LEditsPPPipelineStableDiffusion", False), ("TextToVideoSD", False)],
)
def test_pipelines_whose_rows_are_two_halves(name: str, halves: bool) -> None:
    """And which say so: text-to-video's does not say whether it guides."""
    kind = getattr(diffusers, name if "Pipeline" in name else f"{name}Pipeline")
    assert has_halves(object.__new__(kind)) is halves


def text_parts() -> tuple[Any, ...]:
    """SDXL's two text encoders and tokenizers, as small as can be."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from promptnet.models.tiny import train_tokenizer

    tokenizer = train_tokenizer(["a lighthouse in a storm"] * 2, 400)
    tokenizer.model_max_length = 12
    special: Any = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes: Any = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), **sizes, projection_dim=WIDTH, max_position_embeddings=12, **special
    )
    return CLIPTextModel(config).eval(), CLIPTextModelWithProjection(config).eval(), tokenizer, tokenizer


def test_the_recipes_of_the_page_run_on_sdxl(make_unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, at a smaller size and on the CPU."""
    page = (Path(__file__).parents[3] / "docs" / "resolution.md").read_text("utf-8")
    recipe, tiles = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "2048" in block)
    made = sdxl(make_unet, text_parts())
    made.set_progress_bar_config(disable=True)
    made.vae.disable_tiling()
    monkeypatch.setattr(StableDiffusionXLPipeline, "from_pretrained", lambda *_, **__: made)
    names: dict[str, Any] = {"prompt": "a storm"}
    for code in (recipe, tiles):
        for asked, small in (("2048", "64"), ("50", "2"), ('"cuda"', '"cpu"')):
            code = code.replace(asked, small)
        exec(code, names)
    made.vae.disable_tiling()  # it is shared
    assert names["image"].size == (64, 64)
    assert [image.size for image in names["images"]] == [(64, 64)]
    assert active_handle(made.unet) is None
    assert not names["pixels"].requires_grad


def test_only_spatial_layers_of_video_networks_are_adapted(make_unet: Any) -> None:
    from promptnet.inference.resolution.layers import spatial_attentions, spatial_convolutions

    still = UNetSpatioTemporalConditionModel(
        sample_size=16,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12,
    )
    for unet in (animatediff(make_unet).unet, text_to_video(make_unet).unet, still):
        names = [*spatial_convolutions(unet), *spatial_attentions(unet)]
        assert any("attentions.0.transformer_blocks.0.attn1" in name for name in names)
        assert not [name for name in names if "motion" in name or "temp" in name or "transformer_in" in name]


def test_the_controlnet_is_adapted_with_its_unet(make_unet: Any) -> None:
    pipe = sd_controlnet(make_unet)
    seen: list[bool] = []
    conv = pipe.controlnet.mid_block.resnets[0].conv1
    hook = conv.register_forward_hook(lambda module, *_: seen.append(is_asked(module)))
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
    fractions = [handle.share(timestep) for timestep in pipe.scheduler.timesteps]
    assert fractions == [index / 30 for index in range(30)]
    assert handle.share(pipe.scheduler.timesteps[7]) == 7 / 30  # again, and out of order
    handle.remove()
