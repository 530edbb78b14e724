"""With a real pipeline of random weights: 32 px pictures, so only that things fit together and repeat."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from promptnet import PromptNetModel, PromptNetPipeline
from promptnet.datasets.avatars.render import FIELDS
from promptnet.evaluation.harness.methods import OURS, PUBLISHED, ROWS, Row, make_row
from promptnet.evaluation.harness.renderer import Studio, encoder_folder, picture_size, weight_hashes
from promptnet.evaluation.harness.settings import Settings, load_settings, save_settings
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.subjects.base_model import evaluate_base
from promptnet.evaluation.subjects.compare import evaluate_avatars
from promptnet.evaluation.subjects.tune import tune_settings
from promptnet.models.judge import AvatarJudge
from promptnet.models.tiny import build_scheduler, train_tokenizer

WIDTH = 32
CUSTOMIZE = {encoder: {"steps": 1, "num_views": 2, "batch_size": 1, "rank": 1} for encoder in (OURS, PUBLISHED)}


def build_components(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    prompts = [ask.prompt for person in make_people("train", 20, 4) for ask in person.asks]
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
    """A base model with two encoders and two judges, and settings that tune quickly."""
    folder = tmp_path_factory.mktemp("models")
    components = build_components(0)
    PromptNetPipeline(**components).save_pretrained(folder / "tiny")
    torch.manual_seed(1)
    build_encoder(components["unet"]).save_pretrained(folder / "tiny" / "promptnet-published")
    for split in ("validation", "test"):
        judge = AvatarJudge({field: list(values) for field, values in FIELDS.items()}, width=8)
        judge.save_pretrained(folder / "judges" / split)
    save_settings(Settings({}, CUSTOMIZE, load_settings().rows), folder / "settings.yaml")
    return folder


@pytest.fixture
def studio(models: Path) -> Studio:
    return Studio(models / "tiny", steps=2)


def pixels(pictures) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def row(name: str, **knobs) -> Row:
    return make_row(name, knobs, CUSTOMIZE)


def test_all_rows_are_drawn_judged_and_reported(models: Path, tmp_path: Path):
    run: dict[str, Any] = {"people": 2, "prompts": 2, "steps": 2, "workers": 1, "settings": models / "settings.yaml"}
    results = evaluate_avatars(models / "tiny", out=tmp_path, **run)
    assert list(results["rows"]) == list(ROWS)
    assert results["rows"]["ceiling"]["distance"]["mean"] == pytest.approx(0, abs=1e-6)
    assert results["rows"]["best"]["distance"]["mean"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "plot.png", "results.json", "sheet.png"}
    again = evaluate_avatars(models / "tiny", rows=["published-profusion"], **run)
    assert again["rows"]["published-profusion"] == results["rows"]["published-profusion"]


def test_the_base_model_alone(models: Path):
    results = evaluate_base(models / "tiny", people=2, prompts=1, steps=1, workers=1)
    assert set(results["fields"]) == set(FIELDS)


def test_choosing_knobs(models: Path):
    run: dict[str, Any] = {"people": 1, "prompts": 1, "steps": 1, "workers": 1, "settings": models / "settings.yaml"}
    settings = tune_settings(models / "tiny", rows=["prompt-only", "plain-guidance"], **run)
    assert set(settings.chosen["scores"]) == {"prompt-only", "plain-guidance"}


def test_a_picture_depends_on_its_own_ask_only(studio: Studio):
    person = make_people("validation", 1, 3)[0]
    drawn = studio(person, row("profusion", class_scale=1.0, fusion_steps=1))
    # Without tuning the subject is the same whatever is asked of it.
    alone = replace(person, asks=person.asks[1:2])
    untuned = row("profusion-untuned", class_scale=1.0, fusion_steps=1)
    first, second = studio(person, untuned)[1], studio(alone, untuned)[0]
    worst = max(abs(a - b) for a, b in zip(first.tobytes(), second.tobytes(), strict=True))
    assert worst <= 1, "batches may differ by rounding, not more"
    assert len(set(pixels(drawn))) == 3


def test_tuning_the_encoder_and_every_knob_change_pictures(studio: Studio):
    person = make_people("validation", 1, 1)[0]
    rows = [
        row("plain-guidance"),
        row("plain-guidance", subject_scale=6.0),
        row("plain-guidance-tuned"),
        row("published-plain-guidance-tuned"),
        row("refinement-only", class_scale=4.0),
        row("fusion-only", fusion_steps=1),
        row("fusion-only", fusion_steps=2),
        row("prompt-only"),
        row("prompt-only", guidance_scale=6.0),
        row("ceiling"),
    ]
    drawn = [pixels(studio(person, each))[0] for each in rows]
    assert len(set(drawn)) == len(rows)
    assert pixels(Studio(studio.base, steps=2)(person, rows[2]))[0] == drawn[2], "another studio draws otherwise"


def test_a_subject_is_made_once_while_there_is_room(models: Path):
    studio = Studio(models / "tiny", steps=1, keep=2)
    first, second, third = make_people("validation", 3, 1)
    subject = studio.subject(first, row("plain-guidance"))
    assert studio.subject(first, row("plain-guidance", subject_scale=1.0)) is subject
    studio.subject(second, row("plain-guidance"))
    assert studio.subject(first, row("plain-guidance")) is subject
    studio.subject(third, row("plain-guidance"))
    studio.subject(second, row("plain-guidance"))
    assert studio.subject(first, row("plain-guidance")) is not subject


def test_where_encoders_lie(models: Path, tmp_path: Path):
    assert encoder_folder(models / "tiny", OURS) == models / "tiny" / "promptnet"
    assert encoder_folder(models / "tiny", PUBLISHED) == models / "tiny" / "promptnet-published"
    for beside in ("other-published", "third-published/promptnet"):
        (tmp_path / beside).mkdir(parents=True)
        (tmp_path / beside / "config.json").write_text("{}")
    assert encoder_folder(tmp_path / "other", PUBLISHED) == tmp_path / "other-published"
    assert encoder_folder(tmp_path / "third", PUBLISHED) == tmp_path / "third-published" / "promptnet"


def test_weights_are_hashed_by_part(base: Path):
    rows = [row("plain-guidance")]
    first = weight_hashes(base, [*rows, row("published-plain-guidance-tuned")])
    assert set(first) == {"base", OURS, PUBLISHED}
    assert weight_hashes(base, rows) == {name: first[name] for name in ("base", OURS)}
    (base / "promptnet" / "diffusion_pytorch_model.safetensors").write_bytes(b"other")
    second = weight_hashes(base, rows)
    assert (second["base"] == first["base"], second[OURS] == first[OURS]) == (True, False)
    (base / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"other")
    third = weight_hashes(base, rows)
    assert (third["base"] == second["base"], third[OURS] == second[OURS]) == (False, True)


def test_picture_size_is_read_from_the_configs(base: Path):
    assert picture_size(base) == 64
    (base / "unet" / "config.json").write_text(json.dumps({"sample_size": 8}))
    assert picture_size(base) == 32
