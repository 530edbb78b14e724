"""A pretraining step: the tiny path's numbers, the families, weighting, recomputation, and precision."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from transformers import CLIPImageProcessor

from promptnet.datasets.stream import sample_noise
from promptnet.inference.tuning.loss import denoising_target, noised
from promptnet.models.base_model import VisionInput, load_base
from promptnet.models.text import encode_prompts
from promptnet.training.diffusion_stage import low_discrepancy_timesteps, min_snr_weights, timesteps_of
from promptnet.training.pretrain import stage as pretrain
from promptnet.training.pretrain.precision import frozen_dtype, place_frozen
from promptnet.training.pretrain.stage import PretrainStage
from tests.base_models import write_base

Build = Callable[..., PretrainStage]
FAMILIES = ("sd", "sd-v", "sdxl")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_base(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture
def build(bases: dict[str, Path]) -> Build:
    """(family, options) -> the stage with random weights, always the same."""

    def make(family: str, **options: Any) -> PretrainStage:
        torch.manual_seed(1)
        base = bases[family]
        given = {"region_kernel_size": 2, "region_proj_channel": 8, "vision_id": str(base / "vision")}
        return PretrainStage(str(base), str(base / "out"), **(given | options))

    return make


def batch_of(images: int = 2, height_px: int = 32, width_px: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    return {
        "sample": torch.arange(7, 7 + images),
        "prompt": ["a photo of S*"] * images,
        "reference_pixels": torch.rand(images, 3, 32, 32, generator=generator) * 2 - 1,
        "target_pixels": torch.rand(images, 3, height_px, width_px, generator=generator) * 2 - 1,
        "size_ids": torch.tensor([[40, 40, 0, 0, height_px, width_px]] * images),
    }


def gradients(stage: PretrainStage, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    stage.zero_grad()
    stage.loss(batch, "train").backward()
    return {name: value.grad for name, value in stage.named_parameters() if value.grad is not None}


def test_the_loss_of_the_embedded_models_path_is_what_it_always_was(random_base: Path):
    """Spelt out here as it was when the shipped encoders were trained, and compared bit for bit."""
    torch.manual_seed(3)
    stage = PretrainStage(str(random_base), str(random_base / "out"), region_proj_channel=8)
    stage.latents, stage.reference_latents = ({"train": torch.randn(5, 4, 16, 16)} for _ in range(2))
    batch = {
        "sample": torch.tensor([3, 4]),
        "prompt": ["a portrait of S*", "a portrait of S*, wearing glasses"],
        "reference_index": torch.tensor([0, 1]),
        "target_index": torch.tensor([2, 3]),
        "reference_pixels": torch.rand(2, 3, 64, 64) * 2 - 1,
    }
    clean = stage.latents["train"][[2, 3]].to(memory_format=torch.channels_last)
    reference = stage.reference_latents["train"][[0, 1]].to(memory_format=torch.channels_last)
    noise = sample_noise(0, batch["sample"], "noise", (4, 16, 16)).to(clean)
    timesteps = low_discrepancy_timesteps(0, batch["sample"], 1000)
    alphas = stage.scheduler.alphas_cumprod[timesteps]
    x = noised(clean, noise, alphas)
    with torch.no_grad():
        vision = stage.frozen["image_encoder"](pixel_values=batch["reference_pixels"]).last_hidden_state
    words = stage.promptnet(reference, timesteps, vision, noisy_latents=x).pseudo_words
    rows = [{"S*": row} for row in words]
    states = encode_prompts(stage.tokenizer, stage.frozen["text_encoder"], batch["prompt"], rows).hidden_states
    expected = F.mse_loss(
        stage.frozen["unet"](x, timesteps, states).sample, denoising_target(clean, noise, alphas, "v_prediction")
    )
    assert torch.equal(stage.loss(batch, "train"), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_the_whole_encoder_and_nothing_else(family: str, build: Build):
    stage = build(family)
    loss = stage.loss(batch_of(), "train")
    loss.backward()
    assert 0.05 < float(loss.detach()) < 10
    without = [name for name, value in stage.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []
    assert all(value.grad is None for part in stage.frozen.values() for value in part.parameters())
    assert stage.promptnet.config["prompt_channel"] == (24 + 32 if family == "sdxl" else 24)


def test_words_can_be_placed_and_prompts_left_unpadded_as_published(build: Build):
    stage = build("sd", word_positions="published", prompt_padding="longest")
    words, prompts = torch.randn(2, 3, 24), ["a S* hat"] * 2
    states, _ = stage.encode_prompts(prompts, words)
    given = [{"S*": word} for word in words]
    how: Any = {"positions": "published", "padding": "longest"}
    expected = encode_prompts(stage.tokenizer, stage.frozen["text_encoder"], prompts, given, **how)
    assert torch.equal(states, expected.hidden_states)
    default, _ = build("sd").encode_prompts(prompts, words)
    assert states.shape[1] < default.shape[1]
    assert not torch.allclose(states, default[:, : states.shape[1]], atol=1e-3)


def test_sdxl_has_a_part_of_the_word_for_each_tower_and_needs_sizes(build: Build):
    stage, batch = build("sdxl"), batch_of()
    words = torch.randn(2, 1, 56)
    states, pooled = stage.encode_prompts(batch["prompt"], words)
    assert states.shape == (2, 16, 56)
    assert pooled is not None
    assert pooled.shape == (2, 12)
    changed = words.clone()
    changed[..., :24] += 1  # the first encoder's part
    first, same_pooled = stage.encode_prompts(batch["prompt"], changed)
    assert not torch.equal(first[..., :24], states[..., :24])
    assert torch.equal(first[..., 24:], states[..., 24:])
    assert torch.equal(same_pooled, pooled)  # type: ignore[arg-type]
    del batch["size_ids"]
    with pytest.raises(ValueError, match="FaceDataModule"):
        stage.loss(batch, "train")


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_agreeing_with_the_described_person_is_a_second_error_in_training(family: str, build: Build):
    plain, stage, batch = build(family), build(family, described_weight=3.0), batch_of()
    batch["described"] = ["a hat", "a man"]
    logged: dict[str, torch.Tensor] = {}
    stage.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign, assignment]
    seen: list[torch.Tensor] = []
    hook = stage.frozen["unet"].register_forward_hook(lambda _, __, output: seen.append(output.sample))
    loss = stage.loss(batch, "train")
    hook.remove()
    student, teacher = seen
    agreement = (student - teacher).square().mean()
    assert student.requires_grad
    assert not teacher.requires_grad
    torch.testing.assert_close(logged["train/described"], agreement)
    torch.testing.assert_close(loss, plain.loss(batch, "train") + 3 * agreement)
    assert torch.equal(stage.loss(batch, "validation"), plain.loss(batch, "validation"))
    del batch["described"]
    with pytest.raises(ValueError, match=r"described_weight=3\.0 needs captions"):
        stage.loss(batch, "train")
    with pytest.raises(ValueError, match="described_weight=-1"):
        build(family, described_weight=-1)


def test_cached_features_give_the_loss_of_the_images(build: Build):
    stage, batch = build("sd"), batch_of()
    expected = stage.loss(batch, "train")
    cached = {key: value for key, value in batch.items() if "pixels" not in key}
    for role in ("reference", "target"):
        cached[f"{role}_moments"] = torch.stack(stage._encode_moments(list(batch[f"{role}_pixels"])))
    cached["reference_vision"] = torch.stack(stage._encode_vision(list(batch["reference_pixels"])))
    assert torch.equal(stage.loss(cached, "train"), expected)


def test_a_batch_of_one_image_each_is_encoded_once(build: Build):
    stage, batch = build("sd"), batch_of()
    batch["target_pixels"] = batch["reference_pixels"]
    expected = stage.loss(batch, "train")
    del batch["target_pixels"]
    assert torch.equal(stage.loss(batch, "train"), expected)


def test_the_posterior_is_drawn_by_sample_number_and_in_training_alone(build: Build):
    mode, generated, batch = build("sd"), build("sd", sample_posterior=True), batch_of()
    assert torch.equal(generated._latents(batch, "target", "train"), generated._latents(batch, "target", "train"))
    assert not torch.equal(generated._latents(batch, "target", "train"), mode._latents(batch, "target", "train"))
    for role, split in (("reference", "train"), ("target", "validation")):
        assert torch.equal(generated._latents(batch, role, split), mode._latents(batch, role, split))
    both = build("sd", sample_posterior=True, sample_reference=True)
    assert torch.equal(both._latents(batch, "target", "train"), generated._latents(batch, "target", "train"))
    for role in ("reference", "target"):
        assert not torch.equal(both._latents(batch, role, "train"), mode._latents(batch, role, "train"))
        assert torch.equal(both._latents(batch, role, "validation"), mode._latents(batch, role, "validation"))
    del batch["target_pixels"]
    alone, target = build("sd", sample_reference=True)._pair(batch, "train")
    assert not torch.equal(alone, target)
    assert torch.equal(target, mode._pair(batch, "train")[1])
    with pytest.raises(ValueError, match="rendered avatars keep its mode"):
        both._latents({"target_index": torch.zeros(2)}, "target", "train")


PUBLISHED: dict[str, Any] = {
    "keep_word_norm": False,
    "use_res": True,
    "word_positions": "published",
    "prompt_padding": "longest",
    "sample_posterior": True,
    "sample_reference": True,
    "timesteps": "independent",
    "decay_all": True,
}


@torch.no_grad()
def test_as_published_the_loss_is_that_of_the_published_loop(build: Build):
    """Spelt out as the published train.py computes it, from its own embeddings of the prompt on."""
    stage, batch = build("sd", **PUBLISHED), batch_of()
    del batch["target_pixels"]
    batch["prompt"] = ["A photo of S*"] * 2
    vae, unet, text_encoder = (stage.frozen[name] for name in ("vae", "unet", "text_encoder"))
    samples, scale = batch["sample"], vae.config.scaling_factor
    posterior = vae.encode(batch["reference_pixels"]).latent_dist
    draws = [sample_noise(0, samples, f"posterior{whose}", (4, 16, 16)) for whose in (" of the reference", "")]
    reference, target = ((posterior.mean + posterior.std * draw) * scale for draw in draws)
    assert (reference - target).abs().max() > 1e-3  # each is drawn for itself
    timesteps, noise = timesteps_of("independent", 0, samples, 1000), sample_noise(0, samples, "noise", (4, 16, 16))
    scheduler: Any = stage.scheduler
    noisy = scheduler.add_noise(target, noise, timesteps)
    vision = stage._vision_states(batch["reference_pixels"])
    words = stage.promptnet(reference, timesteps, vision, noisy_latents=noisy).pseudo_words  # (2, 1, 24)

    ids = stage.tokenizer("A photo of", return_tensors="pt").input_ids[0].tolist()
    ids = torch.tensor([[*ids[:-1], *[0] * words.shape[1], ids[-1]]])  # not padded

    def put_words(module: Any, args: Any, embedded: torch.Tensor) -> torch.Tensor:
        embedded = embedded.clone()
        embedded[:, -1 - words.shape[1] : -1] = words  # in place of token and position
        return embedded

    embeddings = getattr(text_encoder, "text_model", text_encoder).embeddings
    handle = embeddings.register_forward_hook(put_words)
    states = text_encoder(ids.expand(2, -1)).last_hidden_state
    handle.remove()
    expected = F.mse_loss(unet(noisy, timesteps, states).sample, noise)
    torch.testing.assert_close(stage.loss(batch, "train"), expected, rtol=1e-5, atol=1e-6)


def test_as_published_residual_heads_are_held_and_get_no_gradient(build: Build):
    stage, plain = build("sd", **PUBLISHED), build("sd", **PUBLISHED | {"use_res": False})
    found, expected = (gradients(each, batch_of()) for each in (stage, plain))
    heads = {name for name, _ in stage.named_parameters() if "residual" in name}
    assert heads
    assert not heads & found.keys()
    assert found.keys() == expected.keys()
    assert not any("residual" in name for name in stage._names_to_decay())


def test_targets_may_have_another_shape_than_references(build: Build):
    stage = build("sd")
    assert math.isfinite(float(stage.loss(batch_of(2, 40, 24), "train").detach()))


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_gives_the_same_gradients(family: str, build: Build):
    kept, checkpointed = build(family).double(), build(family, gradient_checkpointing=True).double()
    for stage in (kept, checkpointed):
        for part in stage.frozen.values():
            nn.Module.to(part, dtype=torch.float64)
    counted = []
    watched = {
        "unet": checkpointed.frozen["unet"].up_blocks[0].resnets[0],
        "promptnet": checkpointed.promptnet.get_submodule("down_blocks.0.resnets.0"),
        "text": checkpointed.text_encoders.text_encoders[0].network,
    }
    for name, module in watched.items():
        module.register_forward_pre_hook(lambda *_, name=name: counted.append(name))
    batch = batch_of()
    expected, found = gradients(kept, batch), gradients(checkpointed, batch)
    assert {name: counted.count(name) for name in watched} == dict.fromkeys(watched, 2)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-14)


def test_transformer_blocks_are_compiled_and_keep_their_names(build: Build):
    stage = build("sd", compile_backend="eager")
    names = set(stage.state_dict())
    stage.compile_blocks()
    for network in (stage.promptnet, stage.frozen["unet"]):
        blocks = [module for module in network.modules() if type(module).__name__ == "BasicTransformerBlock"]
        assert blocks
        assert all(block._compiled_call_impl is not None for block in blocks)
    assert set(stage.state_dict()) == names


def test_large_images_are_encoded_few_at_a_time(build: Build, monkeypatch: pytest.MonkeyPatch):
    stage, images = build("sd"), list(torch.rand(5, 3, 32, 32))
    counts: list[int] = []
    stage.frozen["vae"].encoder.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    together = stage._encode_moments(images)
    monkeypatch.setattr(pretrain, "_PIXELS_TOGETHER", 2 * 32 * 32)
    torch.testing.assert_close(stage._encode_moments(images), together)
    monkeypatch.setattr(pretrain, "_PIXELS_TOGETHER", 1)
    torch.testing.assert_close(stage._encode_moments(images), together)
    assert counts == [5, 2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("gradient_checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_step_has_the_same_gradients(gradient_checkpointing: bool, build: Build):
    """By `aot_eager`: captured, with its backward pass, as for inductor, and run without its kernels."""
    options = {"gradient_checkpointing": gradient_checkpointing}
    plain, compiled = build("sd", **options), build("sd", compile_backend="aot_eager", **options)
    torch._dynamo.reset()  # what was captured for one stage serves the next
    counters.clear()
    compiled.compile_blocks()
    batch = batch_of()
    expected = gradients(plain, batch)
    assert not counters["stats"]
    found = gradients(compiled, batch)
    assert counters["stats"]["unique_graphs"] > 0
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_mixed_precision_keeps_the_encoder_in_float32(build: Build):
    stage, batch = build("sdxl"), batch_of()
    expected = gradients(stage, batch)
    place_frozen(stage.frozen, frozen_dtype("bf16-mixed"), torch.device("cpu"))
    assert {name: part.dtype for name, part in stage.frozen.items()} == {
        "vae": torch.float32,
        **dict.fromkeys(("unet", "text_encoder", "text_encoder_2", "image_encoder"), torch.bfloat16),
    }
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(stage, batch)
    assert {value.dtype for value in found.values()} == {torch.float32}
    left, right = (torch.cat([grads[name].flatten() for name in expected]) for grads in (expected, found))
    assert F.cosine_similarity(left, right, dim=0) > 0.95
    with pytest.raises(ValueError, match="bf16-true"):
        frozen_dtype("bf16-true")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_the_error_in_x0(kind: str):
    a = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    clean, noise = torch.randn(2, 5, 1, 1, 1, dtype=torch.float64)
    x, target = noised(clean, noise, a), denoising_target(clean, noise, a, kind)
    output, root, rest = target + 0.1, a.sqrt().view(-1, 1, 1, 1), (1 - a).sqrt().view(-1, 1, 1, 1)
    recovered = (x - rest * output) / root if kind == "epsilon" else root * x - rest * output
    of_x0 = torch.minimum(a / (1 - a), torch.tensor(5.0)) * (recovered - clean).square().flatten()
    weighted = min_snr_weights(a, 5.0, kind) * (output - target).square().flatten()
    torch.testing.assert_close(weighted, of_x0)


@pytest.mark.parametrize(("kind", "at_noise"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_min_snr_is_finite_at_both_ends(kind: str, at_noise: float):
    ends = torch.tensor([0.0, 1.0], requires_grad=False)
    assert min_snr_weights(ends, 5.0, kind).tolist() == [at_noise, 0.0]


@pytest.mark.parametrize("family", ["sd", "sd-v"])
def test_min_snr_weighs_training_and_leaves_validation_alone(family: str, build: Build):
    plain, weighted, batch = build(family), build(family, min_snr_gamma=1e-3), batch_of()
    without_bound = build(family, min_snr_gamma=1e30)
    if family == "sd":  # min(SNR, inf) / SNR = 1
        torch.testing.assert_close(without_bound.loss(batch, "train"), plain.loss(batch, "train"))
    assert float(weighted.loss(batch, "train").detach()) < float(plain.loss(batch, "train").detach())
    assert torch.equal(weighted.eval().loss(batch, "validation"), plain.eval().loss(batch, "validation"))
    with pytest.raises(ValueError, match="min_snr_gamma=0"):
        build(family, min_snr_gamma=0.0)


def test_vision_input_is_clips_own_preprocessing():
    from PIL import Image

    from promptnet.images.crop import to_pixels

    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(small.numpy()).resize((64, 64), Image.Resampling.BICUBIC)
    side = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side)
    expected = processor(images=image, return_tensors="pt").pixel_values
    text_encoder = type("Tower", (), {"config": type("Config", (), {"image_size": 16})})
    found = VisionInput.of(processor, text_encoder)(to_pixels(image)[None])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # the processor rounds to 8 bits in between
    untouched = torch.rand(1, 3, 16, 16)
    assert VisionInput(16)(untouched) is untouched


def test_a_base_without_a_vision_tower_asks_for_one(bases: dict[str, Path]):
    with pytest.raises(ValueError, match="vision_id"):
        load_base(str(bases["sd"]))
