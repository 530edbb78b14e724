"""What a pretraining run for SDXL draws is conditioned as its training is, and its images are looked at."""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image

from promptnet import PromptNetPipeline
from promptnet.datasets.faces.module import FaceDataModule
from promptnet.images.crop import to_pixels
from promptnet.training.callbacks import CollapseAlarm, MetricsFile, ValidationImages, ValidationMeasures
from promptnet.training.callbacks.metrics_file import read_metrics, values_of
from promptnet.training.callbacks.sampling import check_can_generate, stage_pipeline
from promptnet.training.pretrain.stage import PretrainStage, write_index
from tests.base_models import write_base
from tests.datasets.conftest import write_shard

PROMPT = "S* hat"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("sdxl"), "sdxl")


def stage_of(base: Path, folder: Path, **options: Any) -> PretrainStage:
    torch.manual_seed(1)
    given = {"region_kernel_size": 2, "region_proj_channel": 8, "vision_id": str(base / "vision"), **options}
    return PretrainStage(str(base), str(folder), warmup_steps=1, **given)


def image() -> Image.Image:
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@torch.no_grad()
def test_the_network_is_given_in_drawing_what_it_is_given_in_training(base: Path, tmp_path: Path):
    stage, calls = stage_of(base, tmp_path / "encoder"), []
    pipe = stage_pipeline(stage)
    unet = stage.frozen["unet"]
    hook = unet.register_forward_pre_hook(lambda _, args, kwargs: calls.append((*args, kwargs)), with_kwargs=True)
    subject = pipe.encode(image())
    plain: dict[str, Any] = {"subject_scale": 1.0, "class_scale": 0.0, "fusion_steps": 0, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    pipe(PROMPT, subject=subject, num_inference_steps=3, generator=generator, **plain)
    hook.remove()
    assert len(calls) == 3
    pixels = to_pixels(image())[None]
    batch = {"prompt": [PROMPT], "size_ids": torch.tensor([[32, 32, 0, 0, 32, 32]]), "reference_pixels": pixels}
    reference = stage._latents(batch, "reference", "validation")
    for x, timestep, given in calls:
        # The image encoder's own preprocessing rounds to 8 bits when it scales an image, so both get its states.
        words = stage.promptnet(reference, timestep[None], subject.vision_states, noisy_latents=x).pseudo_words
        expected = stage._conditions(batch, words)
        torch.testing.assert_close(given["encoder_hidden_states"], expected["encoder_hidden_states"])
        assert given["added_cond_kwargs"].keys() == expected["added_cond_kwargs"].keys() == {"text_embeds", "time_ids"}
        for name, value in expected["added_cond_kwargs"].items():
            torch.testing.assert_close(given["added_cond_kwargs"][name], value)
    first, second = (call[2]["added_cond_kwargs"]["text_embeds"] for call in calls[:2])
    assert (first - second).abs().max() > 1e-5  # S* depends on x and t


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler"])
def test_a_base_whose_scheduler_does_not_speak_of_clipping_is_drawn_with(scheduler: str, base: Path, tmp_path: Path):
    shutil.copytree(base, tmp_path / "base")
    file = tmp_path / "base/scheduler/scheduler_config.json"
    config = {**json.loads(file.read_text()), "_class_name": scheduler}
    del config["clip_sample"]
    file.write_text(json.dumps(config))
    stage = stage_of(tmp_path / "base", tmp_path / "encoder")
    assert stage.scheduler.config["clip_sample"] is False
    assert stage.scheduler.config["beta_end"] == config["beta_end"]
    assert torch.equal(stage.alphas, stage_of(base, tmp_path / "encoder").alphas)
    trainer = trained_once(stage, faces_of(tmp_path), tmp_path, ValidationImages(1, 1, num_steps=2, prompts=[PROMPT]))
    assert trainer.global_step == 1


def faces_of(place: Path) -> FaceDataModule:
    """Eight images of four people."""
    write_shard(place / "faces/0.parquet", range(8))
    how: dict[str, Any] = {"resolution_px": 32, "batch_size": 2, "num_workers": 0, "num_validation": 2}
    return FaceDataModule(str(place / "faces"), cache_dir=str(place / "cache"), **how)


def trained_once(stage: PretrainStage, data: FaceDataModule, place: Path, *callbacks: L.Callback) -> Any:
    """The trainer after one step, of which no validation is due before its end."""
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        default_root_dir=place,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(stage, datamodule=data)
    return trainer


class Steps(L.Callback):
    """Counts batches."""

    number = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.number += 1


@pytest.mark.parametrize("what", ["pictures", "scheduler", "measures", "alarm", "export"])
def test_what_a_validation_needs_is_tried_before_the_first_step(
    what: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stage, steps = stage_of(base, tmp_path / "encoder"), Steps()
    callbacks: list[L.Callback] = [steps, ValidationMeasures("none"), ValidationImages(1, 1, prompts=[PROMPT])]
    said = {
        "scheduler": "clip_sample on",
        "alarm": "watches val/identity, but this run logs none",
        "export": "export_dir",
    }
    if what == "pictures":
        monkeypatch.setattr(stage.frozen["vae"], "decode", broken)
    elif what == "scheduler":
        stage.scheduler.register_to_config(clip_sample=True)
    elif what == "measures":
        monkeypatch.setattr(ValidationMeasures, "_prompt_figures", broken)
    elif what == "alarm":
        callbacks.insert(1, CollapseAlarm({"val/identity": 0.1}))
    else:
        (tmp_path / "encoder").write_text("a file")
    with pytest.raises((RuntimeError, ValueError), match=said.get(what, "broken here")):
        trained_once(stage, faces_of(tmp_path), tmp_path, *callbacks)
    assert steps.number == 0


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken here")


def test_held_out_people_are_drawn_and_measured_at_a_validation(base: Path, faces: Path, tmp_path: Path):
    stage = stage_of(base, tmp_path / "encoder")
    data = FaceDataModule(
        str(faces), cache_dir=str(tmp_path), resolution_px=32, batch_size=2, num_workers=0, num_validation=2
    )
    callbacks = [
        ValidationImages(num_people=1, num_prompts=1, num_steps=2, prompts=[PROMPT]),
        ValidationMeasures(identity="none"),
        MetricsFile(),
    ]
    trainer = L.Trainer(
        max_steps=2,
        val_check_interval=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=callbacks,
        default_root_dir=tmp_path,
    )
    with pytest.warns(UserWarning, match="val/prompt_clip is not measured"):
        trainer.fit(stage, datamodule=data)
    generated: Any = callbacks[0]
    ((image,),) = generated.generated(trainer, stage).images
    assert image.size == (32, 32)
    seconds = values_of(read_metrics(tmp_path / "metrics.jsonl"), "val/images_seconds")
    assert [step for step, _ in seconds] == [1, 2]


@pytest.mark.parametrize("positions", ["natural", "published"])
def test_validation_draws_with_the_positions_of_training(
    positions: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []
    generated = PromptNetPipeline.__call__

    def noting(pipe: Any, *args: Any, **given: Any) -> Any:
        asked.append(given["word_positions"])
        return generated(pipe, *args, **given)

    monkeypatch.setattr(PromptNetPipeline, "__call__", noting)
    stage = stage_of(base, tmp_path / "encoder", word_positions=positions)
    trained_once(stage, faces_of(tmp_path), tmp_path, ValidationImages(1, 1, num_steps=2, prompts=[PROMPT]))
    assert set(asked) == {positions}


@pytest.mark.parametrize("zeros", [True, False])
def test_zeros_for_no_negative_prompt_are_the_base_models_choice(zeros: bool, tmp_path: Path):
    base = write_base(tmp_path / "base", "sdxl")
    file = base / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "force_zeros_for_empty_prompt": zeros}))
    stage = stage_of(base, tmp_path / "encoder")
    assert stage_pipeline(stage).config["force_zeros_for_empty_prompt"] is zeros
    stage.promptnet.save_pretrained(base / "promptnet")
    for part in ("image_encoder", "feature_extractor"):
        (base / part).symlink_to(base / "vision")
    write_index(base, {"class_scale": 1.5}, None)
    pipe = PromptNetPipeline.from_pretrained(base)
    assert pipe.config["force_zeros_for_empty_prompt"] is zeros
    assert pipe.sampling_defaults.class_scale == 1.5
    assert pipe.text_encoder_2 is not None
    pipe.encode(image()).check(pipe)


def test_what_cannot_be_drawn_with_is_refused_before_the_training(base: Path, tmp_path: Path):
    stage = stage_of(base, tmp_path / "encoder")
    check_can_generate(stage)
    stage.frozen["unet"].register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="takes 9 channels"):
        check_can_generate(stage)
