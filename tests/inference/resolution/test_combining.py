"""Resolution adaptation together with what else people do to a pipeline."""

from typing import Any

import numpy as np
import pytest
import torch

from promptnet.inference.editing.card import EditCard, edit_fingerprint
from promptnet.inference.resolution import adapt_resolution, load_settings

SIZE: Any = {"height": 256, "width": 256}  # trained at 128: latents 16x16
ALWAYS: Any = {"factors": {"mid_block": 2, "up_blocks": 2}, "active_steps": 50}
DAMPED: Any = {**ALWAYS, "damped_factors": {"mid_block": 2}, "damped_steps": 50}


def edit(pipe: Any) -> EditCard:
    fingerprint = edit_fingerprint(pipe)
    texts = ("a photo of a person", "a photo of a person wearing a hat")
    return EditCard(torch.zeros(2), *texts, "DDIMScheduler", 3.0, fingerprint, "tiny")


# --- in PromptNetPipeline -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", ["off", "auto", ALWAYS, DAMPED], ids=["off", "auto", "own", "damped"])
def test_edits_subjects_and_plain_prompts_at_a_foreign_size(resolution: Any, pipe: Any, make_subject: Any) -> None:
    """Each image of a batch is what it is alone, under every setting; the edit acts on both."""
    subjects, noise = [make_subject(pipe, tuned=True), None], torch.randn(2, 4, 12, 20)
    prompts, options = ["S* on a chair", "a dog"], {"output_type": "np", "height": 24, "width": 40}
    options |= {"edits": edit(pipe), "resolution": resolution, "fusion_steps": 0}
    both = pipe(prompts, subject=subjects, latents=noise, **options).images
    assert both.shape == (2, 24, 40, 3)
    for place, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
        one = pipe(prompt, subject=subject, latents=noise[place : place + 1], **options).images
        np.testing.assert_allclose(both[place], one[0], atol=5e-4)
    options["edits"] = edit(pipe).scaled(0)
    unedited = pipe(prompts, subject=subjects, latents=noise, **options).images
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(both, unedited, strict=True))
    if resolution != "off":
        plain = pipe(prompts, subject=subjects, latents=noise, **{**options, "resolution": "off"}).images
        assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(unedited, plain, strict=True))


def test_fusion_is_damped_with_the_refinement(pipe: Any, make_subject: Any) -> None:
    """Seven items a step: e_u, e_s and e_u damped to fuse, and those and e_c to refine."""
    options: Any = {"fusion_steps": 1, "class_scale": 2.0, "num_inference_steps": 2, "output_type": "latent"}
    options |= {"subject": make_subject(pipe, tuned=True), "latents": torch.randn(1, 4, 16, 16)}

    def generated(settings: Any) -> tuple[torch.Tensor, int]:
        rows: list[int] = []
        hook = pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        generator = torch.Generator().manual_seed(0)
        latents = pipe("S*", height=32, width=32, resolution=settings, generator=generator, **options).images
        hook.remove()
        return latents, sum(rows)

    (damped, num_damped), (undamped, num_undamped) = generated(DAMPED), generated(ALWAYS)
    assert (num_damped, num_undamped) == (2 * 7, 2 * 5)
    assert damped.isfinite().all()
    assert (damped - undamped).abs().max() > 1e-3


def test_free_u_is_off_until_enabled_and_goes_with_any_size(pipe: Any) -> None:
    config = load_settings("published:sd21-2048x2048").freeu
    assert config is not None

    def generated() -> np.ndarray:
        options: Any = {"num_inference_steps": 2, "output_type": "np", "height": 32, "width": 32}
        return pipe("a hat", generator=torch.Generator().manual_seed(0), **options).images

    before = generated()
    pipe.enable_freeu(**config)
    with_free_u = generated()
    pipe.disable_freeu()
    assert np.isfinite(with_free_u).all()
    assert np.abs(with_free_u - before).max() > 1e-3
    assert np.array_equal(generated(), before)


def test_large_latents_are_decoded_in_tiles(pipe: Any) -> None:
    latents = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    shapes: list[tuple[int, ...]] = []
    hook = pipe.vae.decoder.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape[2:])))
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 16
    pipe.vae.enable_tiling()
    options: Any = {"num_inference_steps": 1, "output_type": "pt", "height": 32, "width": 48, "latents": latents}
    tiled = pipe("a hat", **options).images
    pipe.vae.disable_tiling()
    hook.remove()
    assert len(shapes) > 1
    assert max(max(shape) for shape in shapes) <= 8
    assert tiled.shape == (1, 3, 32, 48)
    assert tiled.isfinite().all()


# --- on bare networks ---------------------------------------------------------------------------------------------


def ip_adapter(unet: Any, width: int = 6) -> dict[str, Any]:
    """Random weights of an IP-Adapter for this network, as its files have them."""
    generator = torch.Generator().manual_seed(1)
    inner, outer = unet.config.block_out_channels[0], unet.config.cross_attention_dim

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    count = sum(name.endswith("attn2.processor") for name in unet.attn_processors)
    numbers = [2 * place + 1 for place in range(count)]  # attn1 have the even ones
    layers = {f"{number}.to_{part}_ip.weight": weight(inner, outer) for number in numbers for part in "kv"}
    projection = {"proj.weight": weight(4 * outer, width), "proj.bias": weight(4 * outer)}
    projection |= {"norm.weight": torch.ones(outer), "norm.bias": torch.zeros(outer)}
    return {"image_proj": projection, "ip_adapter": layers}


def call_with_image(unet: Any, timestep: int = 999) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x, states = torch.randn(1, 4, 32, 32, generator=generator), torch.randn(1, 5, 16, generator=generator)
    image = {"image_embeds": [torch.randn(1, 1, 6, generator=generator)]}
    with torch.no_grad():
        return unet(x, torch.tensor(timestep), encoder_hidden_states=states, added_cond_kwargs=image).sample


def test_an_ip_adapter_keeps_its_processors(unet: Any) -> None:
    unet._load_ip_adapter_weights([ip_adapter(unet)])
    unet.requires_grad_(False).eval()
    processors, plain = dict(unet.attn_processors), call_with_image(unet)
    with adapt_resolution(unet, **SIZE, settings=ALWAYS) as handle:
        adapted = call_with_image(unet)
        assert handle.settings.attention
        assert unet.attn_processors == processors
    with adapt_resolution(unet, **SIZE, settings={**ALWAYS, "attention": False}):
        unscaled = call_with_image(unet)
    assert adapted.isfinite().all()
    assert min((adapted - plain).abs().max(), (adapted - unscaled).abs().max()) > 1e-4
    assert torch.equal(call_with_image(unet), plain)


def test_an_ip_adapter_and_low_rank_adapters_loaded_while_adapted(make_unet: Any) -> None:
    from peft import LoraConfig

    def load(unet: Any) -> None:
        torch.manual_seed(2)
        unet._load_ip_adapter_weights([ip_adapter(unet)])
        unet.add_adapter(LoraConfig(r=2, target_modules=["conv1", "to_q", "to_k"], init_lora_weights=False))
        unet.requires_grad_(False).eval()

    before, late = make_unet(), make_unet()
    load(before)
    plain = call_with_image(before)
    with adapt_resolution(before, **SIZE, settings=ALWAYS), adapt_resolution(late, **SIZE, settings=ALWAYS):
        load(late)
        assert torch.equal(call_with_image(late), call_with_image(before))
        assert (call_with_image(late) - plain).abs().max() > 1e-4
    assert torch.equal(call_with_image(late), plain)


def test_whole_network_offload_before_and_after(make_unet: Any, call_unet: Any) -> None:
    from accelerate import cpu_offload_with_hook

    unet = make_unet()
    plain = call_unet(unet)
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        expected = call_unet(unet)
        _, hook = cpu_offload_with_hook(unet, torch.device("cpu"))
        assert torch.equal(call_unet(unet), expected)
        hook.offload()
        assert torch.equal(call_unet(unet), expected)
    assert torch.equal(call_unet(unet), plain)
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        assert torch.equal(call_unet(unet), expected)
    hook.remove()
    assert torch.equal(call_unet(unet), plain)


def test_compiled_while_adapted(make_unet: Any, call_unet: Any) -> None:
    """Through the wrapper of `torch.compile`, made after the adaptation and outliving it."""
    unet = make_unet(1)
    plain = call_unet(unet)
    with adapt_resolution(unet, **SIZE, settings=ALWAYS):
        expected = call_unet(unet)
        compiled: Any = torch.compile(unet, backend="eager")
        assert torch.equal(call_unet(compiled), expected)
    assert torch.equal(call_unet(compiled), plain)
