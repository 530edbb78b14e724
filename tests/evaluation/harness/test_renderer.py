"""The renderer with a real pipeline of random weights at 32 px: the parts fit together and repeat."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from promptnet import PromptNetModel, PromptNetPipeline
from promptnet.datasets.avatars.captions import mentioned
from promptnet.datasets.avatars.person import FIELDS
from promptnet.evaluation.harness.methods import METHODS, OURS, PUBLISHED, Method, make_method
from promptnet.evaluation.harness.renderer import Renderer, encoder_folder, has_encoder, image_size, weight_hashes
from promptnet.evaluation.harness.settings import Settings, load_settings, save_settings
from promptnet.evaluation.harness.tasks import PLACEHOLDER, make_people
from promptnet.evaluation.subjects.base_model import evaluate_base
from promptnet.evaluation.subjects.compare import evaluate_avatars
from promptnet.evaluation.subjects.tune import tune_settings
from promptnet.models.judge import AvatarJudge
from promptnet.models.tiny import build_scheduler, train_tokenizer

WIDTH = 32
BOTH: dict[str, Any] = {name: dict.fromkeys(spec.positive, 1.0) for name, spec in METHODS.items() if spec.positive}
CUSTOMIZE = {encoder: {"steps": 1, "num_views": 2, "batch_size": 1, "rank": 1} for encoder in (OURS, PUBLISHED)}


def build_components(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    prompts = [eval_prompt.prompt for person in make_people("train", 20, 4) for eval_prompt in person.eval_prompts]
    tokenizer = train_tokenizer(prompts, 700)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vae_blocks: dict[str, Any] = {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    vocab_size, length = len(tokenizer), tokenizer.model_max_length
    unet_blocks: dict[str, Any] = {
        "block_out_channels": [16, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        **unet_blocks,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return {
        "vae": AutoencoderKL(
            norm_num_groups=4,
            **vae_blocks,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(vocab_size=vocab_size, max_position_embeddings=length, **size, **ids)
        ),
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": build_scheduler(),
        "promptnet": build_encoder(unet),
        "image_encoder": CLIPVisionModel(CLIPVisionConfig(**size, image_size=32, patch_size=16)),
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }


def build_encoder(unet: UNet2DConditionModel) -> PromptNetModel:
    return PromptNetModel.from_unet(
        unet, vision_dim=WIDTH, prompt_channel=WIDTH, region_proj_channel=8, region_kernel_size=2
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Write a base model with two encoders and two judges, and settings that tune quickly."""
    folder = tmp_path_factory.mktemp("models")
    components = build_components(0)
    PromptNetPipeline(**components).save_pretrained(folder / "tiny")
    torch.manual_seed(1)
    build_encoder(components["unet"]).save_pretrained(folder / "tiny" / "promptnet-published")
    for split in ("validation", "test"):
        judge = AvatarJudge({field: list(values) for field, values in FIELDS.items()}, width=8)
        judge.save_pretrained(folder / "judges" / split)
    save_settings(Settings({}, CUSTOMIZE, load_settings().methods), folder / "settings.yaml")
    return folder


@pytest.fixture
def renderer(models: Path) -> Renderer:
    return Renderer(models / "tiny", steps=2)


def pixels(images) -> list[bytes]:
    return [image.tobytes() for image in images]


def method(name: str, **config) -> Method:
    return make_method(name, config, CUSTOMIZE)


def test_all_methods_are_generated_scored_and_reported(models: Path, tmp_path: Path):
    run: dict[str, Any] = {"people": 2, "prompts": 2, "steps": 2, "workers": 1, "settings": models / "settings.yaml"}
    results = evaluate_avatars(models / "tiny", out=tmp_path, **run)
    assert list(results["rows"]) == list(METHODS)
    assert results["rows"]["ceiling"]["distance"]["mean"] == pytest.approx(0, abs=1e-6)
    assert results["rows"]["best"]["distance"]["mean"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "plot.png", "results.json", "sheet.png"}
    again = evaluate_avatars(models / "tiny", methods=["published-profusion"], **run)
    assert again["rows"]["published-profusion"] == results["rows"]["published-profusion"]


def test_the_base_model_alone(models: Path):
    results = evaluate_base(models / "tiny", people=2, prompts=1, steps=1, workers=1)
    assert set(results["fields"]) == set(FIELDS)


def test_choosing_parameters(models: Path):
    run: dict[str, Any] = {"people": 1, "prompts": 1, "steps": 1, "workers": 1, "settings": models / "settings.yaml"}
    settings = tune_settings(models / "tiny", methods=["prompt-only", "plain-guidance"], **run)
    assert set(settings.chosen["scores"]) == {"prompt-only", "plain-guidance"}


def test_an_image_depends_on_its_own_prompt_only(renderer: Renderer):
    person = make_people("validation", 1, 3)[0]
    generated = renderer(person, method("profusion", class_scale=1.0, fusion_steps=1))
    # Without tuning, the subject is the same for all prompts.
    alone = replace(person, eval_prompts=person.eval_prompts[1:2])
    untuned = method("profusion-untuned", class_scale=1.0, fusion_steps=1)
    first, second = renderer(person, untuned)[1], renderer(alone, untuned)[0]
    worst = max(abs(a - b) for a, b in zip(first.tobytes(), second.tobytes(), strict=True))
    assert worst <= 1, "batches may differ by rounding, not more"
    assert len(set(pixels(generated))) == 3


def test_tuning_the_encoder_and_every_parameter_change_images(renderer: Renderer):
    person = make_people("validation", 1, 1)[0]
    methods = [
        method("plain-guidance"),
        method("plain-guidance", subject_scale=6.0),
        method("plain-guidance-tuned"),
        method("published-plain-guidance-tuned"),
        method("refinement-only", class_scale=4.0),
        method("fusion-only", fusion_steps=1),
        method("fusion-only", fusion_steps=2),
        method("prompt-only"),
        method("prompt-only", guidance_scale=6.0),
        method("described"),
        method("ceiling"),
    ]
    generated = [pixels(renderer(person, each))[0] for each in methods]
    assert len(set(generated)) == len(methods)
    assert pixels(Renderer(renderer.base, steps=2)(person, methods[2]))[0] == generated[2], (
        "another renderer generates other images"
    )


def test_prompts_without_a_subject_name_nobody_or_everything(base: Path, monkeypatch):
    asked: list[list[str]] = []
    monkeypatch.setattr(Renderer, "_sampled", lambda self, person, encoder, prompts, config: asked.append(prompts))
    (person,) = make_people("validation", 1, 2)
    renderer = Renderer(base, steps=1)
    renderer(person, method("prompt-only"))
    renderer(person, method("described"))
    assert [mentioned(prompt) for prompt in asked[0]] == [each.asked() for each in person.eval_prompts]
    assert [mentioned(prompt) for prompt in asked[1]] == [truth.record() for truth in person.truths()]
    assert not [prompt for prompts in asked for prompt in prompts if PLACEHOLDER in prompt]


def test_methods_know_whether_their_encoder_is_there(base: Path):
    (base / "promptnet-published" / "config.json").unlink()
    found = {name: has_encoder(base, make_method(name, BOTH.get(name, {}), {})) for name in METHODS}
    assert found == {name: not name.startswith("published") for name in METHODS}


def test_a_subject_is_made_once_while_there_is_room(models: Path):
    renderer = Renderer(models / "tiny", steps=1, keep=2)
    first, second, third = make_people("validation", 3, 1)
    subject = renderer.subject(first, method("plain-guidance"))
    assert renderer.subject(first, method("plain-guidance", subject_scale=1.0)) is subject
    renderer.subject(second, method("plain-guidance"))
    assert renderer.subject(first, method("plain-guidance")) is subject
    renderer.subject(third, method("plain-guidance"))
    renderer.subject(second, method("plain-guidance"))
    assert renderer.subject(first, method("plain-guidance")) is not subject


def test_encoder_folders(models: Path, tmp_path: Path):
    assert encoder_folder(models / "tiny", OURS) == models / "tiny" / "promptnet"
    assert encoder_folder(models / "tiny", PUBLISHED) == models / "tiny" / "promptnet-published"
    for beside in ("other-published", "third-published/promptnet"):
        (tmp_path / beside).mkdir(parents=True)
        (tmp_path / beside / "config.json").write_text("{}")
    assert encoder_folder(tmp_path / "other", PUBLISHED) == tmp_path / "other-published"
    assert encoder_folder(tmp_path / "third", PUBLISHED) == tmp_path / "third-published" / "promptnet"


def test_weights_are_hashed_by_part(base: Path):
    methods = [method("plain-guidance")]
    first = weight_hashes(base, [*methods, method("published-plain-guidance-tuned")])
    assert set(first) == {"base", OURS, PUBLISHED}
    assert weight_hashes(base, methods) == {name: first[name] for name in ("base", OURS)}
    (base / "promptnet" / "diffusion_pytorch_model.safetensors").write_bytes(b"other")
    second = weight_hashes(base, methods)
    assert (second["base"] == first["base"], second[OURS] == first[OURS]) == (True, False)
    (base / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"other")
    third = weight_hashes(base, methods)
    assert (third["base"] == second["base"], third[OURS] == second[OURS]) == (False, True)


def test_image_size_is_read_from_the_configs(base: Path):
    assert image_size(base) == 64
    (base / "unet" / "config.json").write_text(json.dumps({"sample_size": 8}))
    assert image_size(base) == 32
