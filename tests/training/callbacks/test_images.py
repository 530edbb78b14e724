"""What a pretraining run shows and measures of held-out people, and that it changes nothing about the training."""

import copy
import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from PIL import Image
from transformers import CLIPImageProcessor

from promptnet.datasets.avatars.module import PairDataModule
from promptnet.datasets.avatars.person import FIELDS
from promptnet.images.crop import to_pixels
from promptnet.models.judge import AvatarJudge
from promptnet.training.callbacks import (
    CollapseAlarm,
    GradientWatch,
    MetricsFile,
    Throughput,
    ValidationImages,
    ValidationMeasures,
    WriteModelCard,
)
from promptnet.training.callbacks.held_out_people import avatar_people
from promptnet.training.callbacks.metrics_file import read_metrics, values_of
from promptnet.training.callbacks.sampling import draw, stage_pipeline, undisturbed
from promptnet.training.pretrain.stage import PretrainStage
from promptnet.training.run.checkpoints import newest_checkpoint
from promptnet.training.run.preemption import EXIT_INTERRUPTED
from promptnet.training.run.saving import SaveState

TINY: dict[str, Any] = {"num_people": 2, "num_prompts": 2, "num_steps": 2}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained judge of avatars."""
    folder = tmp_path_factory.mktemp("judges") / "validation"
    torch.manual_seed(0)
    AvatarJudge({name: list(values) for name, values in FIELDS.items()}, width=8).save_pretrained(folder)
    return folder


def stage_of(base: Path, folder: Path, **options: Any) -> PretrainStage:
    torch.manual_seed(5)
    return PretrainStage(
        base_dir=str(base),
        export_dir=str(folder / "encoder"),
        region_proj_channel=8,
        learning_rate=1e-3,
        warmup_steps=1,
        **options,
    )


def fit(
    base: Path, cache: Path, folder: Path, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> tuple[L.Trainer, PretrainStage]:
    stage = stage_of(base, folder)
    data = PairDataModule(num_images=48, num_validation=8, batch_size=2, cache_dir=str(cache))
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    chosen = {"max_steps": 3, "log_every_n_steps": 1, "logger": False, "gradient_clip_val": 1.0, **quiet, **options}
    chosen = {"val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 1, **chosen}
    trainer = L.Trainer(default_root_dir=folder, accelerator="cpu", devices=1, callbacks=list(callbacks), **chosen)
    trainer.fit(stage, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer, stage


class Global(Callback):
    """Draws from every global generator after each batch, and remembers modes."""

    def __init__(self) -> None:
        self.generated: list[tuple[float, float, float]] = []
        self.modes: list[bool] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.generated.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        parts = [pl_module, *pl_module.frozen.values()]
        self.modes += [module.training for part in parts for module in part.modules()]


def everything(judge: Path, **card: Any) -> list[Callback]:
    owner = {"data": "portraits", "data_licence": "CC BY 4.0", "base_licence": "apache-2.0", "licence": "apache-2.0"}
    callbacks: list[Callback] = [
        ValidationImages(**TINY),
        ValidationMeasures(judge=str(judge)),
        CollapseAlarm(),
        GradientWatch(),
        Throughput(peak_tflops=0.1),
        MetricsFile(),
        WriteModelCard(**{**owner, **card}),
    ]
    return callbacks


@pytest.fixture(scope="module")
def run(random_base: Path, image_cache: Path, judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A short training with all callbacks, and the same one without."""
    outcomes = []
    for name, callbacks in (("plain", []), ("watched", everything(judge))):
        folder = tmp_path_factory.mktemp(name)
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        state = Global()
        logger = TensorBoardLogger(str(folder), name="", version="tensorboard")
        trainer, stage = fit(
            random_base, image_cache, folder, EMAWeightAveraging(decay=0.5), *callbacks, state, logger=logger
        )
        outcomes.append((folder, trainer, stage, state))
    return outcomes


def test_weights_randomness_and_modes_are_bit_for_bit_those_of_a_run_without(run: Any):
    (_, _, plain, before), (_, _, watched, after) = run
    for (name, one), two in zip(plain.promptnet.named_parameters(), watched.promptnet.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert before.generated == after.generated
    assert before.modes == after.modes
    assert any(before.modes)


def test_a_resumed_run_ends_with_the_same_weights_and_the_same_file(
    run: Any, random_base: Path, image_cache: Path, judge: Path, tmp_path: Path
):
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    average = EMAWeightAveraging(decay=0.5)
    fit(random_base, image_cache, tmp_path, average, *everything(judge), Save(), max_steps=2)
    folder, _, whole, _ = run[1]
    _, resumed = fit(
        *(random_base, image_cache, tmp_path, EMAWeightAveraging(decay=0.5)),
        *everything(judge),
        resume=tmp_path / "one.ckpt",
    )
    for (name, one), two in zip(whole.promptnet.named_parameters(), resumed.promptnet.parameters(), strict=True):
        assert torch.equal(one, two), name
    for name in ("train/loss", "gradients/norm", "val/loss", "val/identity", "val/copy_paste"):
        first, second = (values_of(read_metrics(place / "metrics.jsonl"), name) for place in (folder, tmp_path))
        assert first == second, name


def test_every_second_validation_stays_every_second_one_in_a_resumed_run(
    random_base: Path, image_cache: Path, tmp_path: Path
):
    def drawn_at(**options: Any) -> list[int]:
        images = ValidationImages(**TINY, every_n_validations=2)
        fit(random_base, image_cache, tmp_path, images, MetricsFile(), val_check_interval=1, **options)
        return [step for step, _ in values_of(read_metrics(tmp_path / "metrics.jsonl"), "val/images_seconds")]

    class Save(ValidationImages):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    images = Save(**TINY, every_n_validations=2)
    fit(random_base, image_cache, tmp_path, images, max_steps=3, val_check_interval=1)
    state = torch.load(tmp_path / "two.ckpt", weights_only=True)
    (counted,) = (value for name, value in state["callbacks"].items() if "Save" in name)
    assert counted == {"num_validations": 2, "counted_at": 2}
    state["callbacks"] = {"ValidationImages": counted}
    torch.save(state, tmp_path / "two.ckpt")
    assert drawn_at(resume=tmp_path / "two.ckpt", max_steps=4) == [3, 4]  # the last one shows what the run ends with
    (tmp_path / "metrics.jsonl").unlink()
    assert drawn_at(max_steps=6) == [1, 3, 5, 6]


def test_what_a_run_logs(run: Any):
    folder, *_ = run[1]
    entries = read_metrics(folder / "metrics.jsonl")
    for name in ("val/identity", "val/prompt_fields", "val/copy_paste", "val/images_seconds", "val/loss"):
        assert values_of(entries, name)[0][0] == 2, name
    for name in ("val/identity", "val/prompt_fields", "val/copy_paste", "val/images_seconds"):
        assert [step for step, _ in values_of(entries, name)] == [2, 3], name  # and at the end, without a validation
    for name in ("gradients/norm", "gradients/clipped_share", "gradients/nonfinite_steps", "train/loss"):
        assert [step for step, _ in values_of(entries, name)] == [1, 2, 3], name
    for name in ("speed/images_per_s", "speed/data_wait_share", "speed/mfu", "speed/hfu", "speed/step_tflop"):
        assert [step for step, _ in values_of(entries, name)] == [2, 3], name
    assert values_of(entries, "alarm/val/identity") == [(2, 0.0)]
    assert all(0 < share < 1 for _, share in values_of(entries, "speed/data_wait_share"))
    rates = dict(values_of(entries, "speed/images_per_s"))
    tflop = dict(values_of(entries, "speed/step_tflop"))
    for step, mfu in values_of(entries, "speed/mfu"):
        assert mfu == pytest.approx(tflop[step] / 2 * rates[step] / 0.1)


def test_images_reach_tensorboard(run: Any):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, *_ = run[1]
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    sheets = events.Images("val/people")
    assert [sheet.step for sheet in sheets] == [2, 3]
    assert (sheets[0].width, sheets[0].height) == (5 * 70 + 6, 2 * 70 + 6)  # reference, two drawn, two true; two people
    assert "val/people_prompts/text_summary" in events.Tags()["tensors"]
    plain = EventAccumulator(str(run[0][0] / "tensorboard"))
    plain.Reload()
    assert plain.Tags()["images"] == []


def test_the_model_card_lies_beside_the_encoder(run: Any):
    folder, _, stage, _ = run[1]
    card = (folder / "encoder" / "README.md").read_text()
    assert card.startswith("---\nlicense: 'apache-2.0'\n")
    assert "| the data | CC BY 4.0 |" in card
    assert "`val/identity`" in card
    assert "| learning_rate | `0.001` |" in card
    assert "| weight averaging | `EMAWeightAveraging` |" in card
    assert "- 3 optimiser steps" in card
    assert "\n6 images of 6 people were trained on" in card, "three batches of two, no person twice"
    assert str(folder) not in card
    assert str(Path(stage.hparams["base_dir"]).parent) not in card
    assert "![Loss by step](loss.png)" in card
    with Image.open(folder / "encoder" / "loss.png") as image:
        assert image.format == "PNG"
    assert (folder / "encoder" / "config.json").is_file()


def test_the_validated_weights_are_the_averaged_ones(random_base: Path, image_cache: Path, tmp_path: Path):
    seen: list[torch.Tensor] = []

    class Spy(ValidationImages):
        def _draw(self, trainer: Any, stage: Any) -> Any:
            seen.append(stage.promptnet.region_prompt_output.weight.detach().clone())
            return super()._draw(trainer, stage)

    class Averages(Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.average = next(c for c in trainer.callbacks if isinstance(c, EMAWeightAveraging))._average_model
            self.at_validation = self.average.module.promptnet.region_prompt_output.weight.detach().clone()  # pyright: ignore

    averages, average = Averages(), EMAWeightAveraging(decay=0.9)
    _, stage = fit(random_base, image_cache, tmp_path, averages, average, Spy(**TINY))
    assert torch.equal(seen[0], averages.at_validation)
    final = averages.average.module.promptnet.region_prompt_output.weight.detach()  # pyright: ignore
    assert torch.equal(seen[1], final)
    assert torch.equal(stage.promptnet.region_prompt_output.weight, final)
    assert not torch.equal(seen[0], seen[1])


def test_images_are_drawn_under_mixed_precision(random_base: Path, image_cache: Path, tmp_path: Path):
    _, stage = fit(random_base, image_cache, tmp_path, ValidationImages(**TINY), MetricsFile(), precision="bf16-mixed")
    assert values_of(read_metrics(tmp_path / "metrics.jsonl"), "val/images_seconds")
    assert stage.trainer.precision == "bf16-mixed"


def test_sharded_weights_and_other_networks_are_said_before_the_training(random_base: Path, tmp_path: Path):
    stage, callback = stage_of(random_base, tmp_path), ValidationImages(**TINY)
    sharded: Any = SimpleNamespace(
        strategy=FSDPStrategy(), callbacks=[callback], datamodule=SimpleNamespace(held_out_people=lambda *_: ["one"])
    )
    with pytest.warns(UserWarning, match="no validation images"):
        callback.setup(sharded, stage, "fit")
    assert callback.generated(sharded, stage) is None
    stage.frozen["unet"].register_to_config(addition_embed_type="text_image")
    with pytest.raises(ValueError, match="addition_embed_type='text_image' are not supported"):
        callback.setup(sharded, stage, "fit")


def test_drawing_uses_the_stages_own_weights(random_base: Path, tmp_path: Path):
    stage = stage_of(random_base, tmp_path)
    pipe = stage_pipeline(stage)
    for name in ("vae", "unet", "text_encoder", "image_encoder"):
        assert getattr(pipe, name) is stage.frozen[name]
    assert pipe.promptnet is stage.promptnet
    assert pipe.scheduler is not stage.scheduler


def test_images_are_decoded_one_by_one(random_base: Path, tmp_path: Path):
    stage, (person,), sizes = stage_of(random_base, tmp_path), avatar_people(1, 3), []
    stage.frozen["vae"].decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    images = draw(stage_pipeline(stage), person, num_steps=1, guidance=1.0)
    assert images is not None
    assert len(images) == 3
    assert sizes == [1, 1, 1]
    assert not stage.frozen["vae"].use_slicing


def test_undisturbed_restores_modes_and_randomness_after_an_error():
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2).eval())
    network.train(False)
    network[0].train()
    modes = [module.training for module in network.modules()]
    states = (torch.get_rng_state(), copy.deepcopy(random.getstate()), np.random.get_state()[1].copy())  # pyright: ignore

    def disturb() -> None:
        with undisturbed([network]):
            assert not any(module.training for module in network.modules())
            raise RuntimeError(f"on purpose, after {torch.rand(3)}, {random.random()} and {np.random.rand()}")

    with pytest.raises(RuntimeError, match="on purpose"):
        disturb()
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # pyright: ignore


def test_a_run_that_is_to_stop_draws_no_more(random_base: Path, image_cache: Path, tmp_path: Path):
    class EvalPrompt(Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                os.kill(os.getpid(), signal.SIGTERM)

    callbacks = [ValidationImages(**TINY), MetricsFile(), EvalPrompt(), SaveState(str(tmp_path / "checkpoints"))]
    with pytest.raises(SystemExit) as leaving:
        fit(random_base, image_cache, tmp_path, *callbacks, enable_checkpointing=True)
    assert leaving.value.code == EXIT_INTERRUPTED
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert [step for step, _ in values_of(entries, "train/loss")] == [1, 2]
    assert not values_of(entries, "val/images_seconds")


def test_drawing_leaves_off_behind_any_step(random_base: Path, tmp_path: Path):
    stage, person = stage_of(random_base, tmp_path), avatar_people(1, 2)[0]
    asked: list[bool] = []

    def is_to_stop() -> bool:
        asked.append(len(asked) == 1)
        return asked[-1]

    assert draw(stage_pipeline(stage), person, 5, 1.0, is_to_stop) is None
    assert asked == [False, True]
    images = draw(stage_pipeline(stage), person, 2, 1.0, is_to_stop)
    assert images is not None
    assert len(images) == 2


def test_a_validation_that_is_done_again_counts_once(random_base: Path, image_cache: Path, tmp_path: Path):
    class EvalPrompt(Callback):
        def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2 and not trainer.sanity_checking:
                os.kill(os.getpid(), signal.SIGTERM)

    def callbacks(*more: Callback) -> list[Callback]:
        images = ValidationImages(**TINY, every_n_validations=2)
        return [images, MetricsFile(), *more, SaveState(str(tmp_path / "checkpoints"))]

    given = (random_base, image_cache, tmp_path)
    with pytest.raises(SystemExit):
        fit(*given, *callbacks(EvalPrompt()), val_check_interval=1, enable_checkpointing=True)
    newest = newest_checkpoint(tmp_path)
    fit(*given, *callbacks(), val_check_interval=1, enable_checkpointing=True, resume=newest, max_steps=5)
    seconds = values_of(read_metrics(tmp_path / "metrics.jsonl"), "val/images_seconds")
    assert [step for step, _ in seconds] == [1, 3, 5]


@pytest.mark.parametrize("has_its_own", [True, False])
def test_the_tower_sees_what_it_sees_in_training(has_its_own: bool, random_base: Path, tmp_path: Path):
    base, text_encoder = tmp_path / "base", tmp_path / "tower"
    shutil.copytree(random_base, base)
    shutil.move(base / "image_encoder", text_encoder)
    if has_its_own:  # the base's own processor is another
        CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(
            text_encoder
        )
        stage = stage_of(base, tmp_path, vision_id=str(text_encoder))
    else:
        shutil.move(text_encoder, base / "image_encoder")
        shutil.rmtree(base / "feature_extractor")
        stage = stage_of(base, tmp_path)
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    extractor: Any = stage_pipeline(stage).feature_extractor
    found = extractor(images=image, return_tensors="pt").pixel_values
    torch.testing.assert_close(found, stage.vision_input(to_pixels(image)[None]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda judge: [ValidationMeasures(judge=str(judge))], "add it to trainer.callbacks"),
        (lambda judge: [ValidationImages(**TINY), EMAWeightAveraging()], "must come after EMAWeightAveraging"),
        (lambda judge: [ValidationImages(prompts=["a portrait"])], r"'a portrait' has no S\*"),
        (lambda judge: [ValidationImages(**TINY), ValidationMeasures("judge", judge="nowhere")], "nowhere"),
        (lambda judge: [ValidationImages(**TINY), ValidationMeasures("judge", judge=judge.parent / "test")], "alone"),
        (lambda judge: [everything(judge)[-1]], "add MetricsFile"),
    ],
)
def test_what_cannot_work_is_refused_before_the_training(
    callbacks: Any, message: str, random_base: Path, image_cache: Path, judge: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        fit(random_base, image_cache, tmp_path, *callbacks(judge), max_steps=1)
    assert not (tmp_path / "encoder").exists()
