"""Every shipped pretraining config builds what it says, at its true shapes, without a weight or a download."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from promptnet.datasets.faces.module import FaceDataModule
from promptnet.inference.sampling.schedule import prediction_type
from promptnet.models.base_model_shapes import clip_model
from promptnet.training.callbacks import MetricsFile, ValidationImages, ValidationMeasures, WriteModelCard
from promptnet.training.callbacks.logs import check_after_averaging
from promptnet.training.callbacks.sampling import check_can_generate
from promptnet.training.dry_run.meter import StepCounter
from promptnet.training.dry_run.plan import Plan, Setting, build_on_meta, make_plan, meta_batch, setting_of
from promptnet.training.dry_run.validation import Method, _clip_work

ROOT = Path(__file__).parents[3]
# Numbers of parameters as the models' own files have them.
EXPECTED: dict[str, dict[str, Any]] = {
    "sd15": {"unet": 859_520_964, "text": [123_060_480], "width": 768, "words": 1, "kind": "epsilon"},
    "sd2": {"unet": 865_910_724, "text": [340_387_840], "width": 1024, "words": 1, "kind": "epsilon"},
    "as-published": {"unet": 865_910_724, "text": [340_387_840], "width": 1024, "words": 1, "kind": "epsilon"},
    "sd2-v": {"unet": 865_910_724, "text": [340_387_840], "width": 1024, "words": 1, "kind": "v_prediction"},
    "sdxl": {
        "unet": 2_567_463_684,
        "text": [123_060_480, 694_659_840],
        "width": 2048,
        "words": 4,
        "kind": "epsilon",
    },
}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs/pretrain" / f"{name}.yaml").read_text())


def callbacks_of(config: dict[str, Any]) -> list[Any]:
    """Those of a config, built, and the one that train.py adds."""
    built = []
    for entry in config["trainer"]["callbacks"]:
        module, _, name = entry["class_path"].rpartition(".")
        built.append(getattr(importlib.import_module(module), name)(**entry.get("init_args", {})))
    return [*built, MetricsFile()]


def count(network: Any) -> int:
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("name", list(EXPECTED))
def test_config_builds_at_its_true_shapes(name: str):
    config, expected = load(name), EXPECTED[name]
    stage, module = build_on_meta(config["model"]["init_args"]), FaceDataModule(**config["data"]["init_args"])
    assert all(value.is_meta for value in stage.parameters())
    assert count(stage.frozen["unet"]) == expected["unet"]
    assert count(stage.frozen["vae"]) == 83_653_863
    texts = [part for key, part in stage.frozen.items() if key.startswith("text_encoder")]
    assert [count(text) for text in texts] == expected["text"]
    assert stage.text_encoders.width == stage.promptnet.config["prompt_channel"] == expected["width"]
    assert prediction_type(stage.scheduler) == expected["kind"]
    vae = stage.frozen["vae"].config
    side = module.resolution_px // 2 ** (len(vae.block_out_channels) - 1)
    assert side == stage.frozen["unet"].config.sample_size
    assert stage.promptnet.num_pseudo_words(side, side) == expected["words"]
    check_callbacks(config, stage)


def check_callbacks(config: dict[str, Any], stage: Any) -> None:
    """What the callbacks themselves look for before a training."""
    trainer: Any = SimpleNamespace(callbacks=callbacks_of(config))
    found = {type(callback): callback for callback in trainer.callbacks}
    found[WriteModelCard].setup(trainer, stage, "fit")
    check_can_generate(stage)
    for kind in (ValidationImages, ValidationMeasures):
        check_after_averaging(trainer, found[kind])
    steps = config["trainer"]["val_check_interval"] / config["trainer"].get("accumulate_grad_batches", 1)
    assert steps == config["checkpoint"]["every_n_train_steps"]


def test_as_published_is_the_published_training():
    """What the published train.py does when it is called as its README says."""
    config = load("as-published")
    stage, module = build_on_meta(config["model"]["init_args"]), FaceDataModule(**config["data"]["init_args"])
    assert count(stage.promptnet) == 431_285_504  # with the residual heads, without a gain for words
    assert sum(value.numel() for value in stage.promptnet.parameters() if value.requires_grad) == 408_337_024
    assert (stage.word_positions, stage.prompt_padding) == ("published", "longest")
    assert (stage.sample_posterior, stage.sample_reference, stage.min_snr_gamma) == (True, True, None)
    assert (stage.timesteps, stage.described_weight) == ("independent", 0.0)
    assert {stage.rate_factor(step, 80_000) for step in (0, 1, 79_999)} == {1.0}
    assert (stage.learning_rate, tuple(stage.betas)) == (2e-5, (0.9, 0.999))
    assert (stage.weight_decay, stage.optimizer) == (0.01, "adamw")
    trained = {name for name, value in stage.named_parameters() if value.requires_grad}
    assert stage._names_to_decay() == trained
    assert (module.reference, module.prompts.neutral, module.prompts.captioned) == (
        "same-image",
        "A photo of S*",
        0.0,
    )
    assert (module.augmentation.flip, module.augmentation.colour_jitter, module.batch_size) == (0.0, 0.0, 8)
    trainer = config["trainer"]
    assert (trainer["max_steps"], trainer["precision"], trainer["gradient_clip_val"]) == (80_000, "16-mixed", 1.0)
    assert trainer.get("accumulate_grad_batches", 1) == 1
    assert not any("Averaging" in entry["class_path"] for entry in trainer["callbacks"])


def test_the_encoder_for_sd2_has_the_published_size():
    stage = build_on_meta({**load("sd2")["model"]["init_args"], "keep_word_norm": False})
    assert count(stage.promptnet) == 408_337_024


@pytest.fixture(scope="module")
def plans() -> dict[bool, Plan]:
    options = load("sd2")["model"]["init_args"]
    setting = Setting(batch_size=1, features=("latents", "vision"), precision="bf16-mixed")
    return {on: make_plan({**options, "gradient_checkpointing": on}, setting) for on in (False, True)}


def test_work_is_that_of_the_networks(plans: dict[bool, Plan]):
    """A U-Net of SD 2 takes 0.68 TFLOP forward at 512 px, as others count it; backward to its inputs as much again."""
    flops = plans[False].step_flops / 1e12
    assert 1.6 < flops < 3.0
    assert 1.2 < plans[True].step_flops / plans[False].step_flops < 1.5


def test_recomputing_saves_most_of_the_activations(plans: dict[bool, Plan]):
    kept, checkpointed = (plans[on].memory_bytes["activations, at their peak"] / 2**30 for on in (False, True))
    assert 0.8 < kept < 3
    assert checkpointed < 0.7 * kept  # at one image, what is left is one block and its weights' gradients
    assert sum(plans[True].memory_bytes.values()) < 24e9
    assert plans[True].memory_bytes["encoder's weights"] == 4 * (408_337_024 + 1)


def test_peak_memory_counts_what_is_alive_at_one_time():
    weight = torch.empty(5000, device="meta")
    with StepCounter([weight]) as memory:
        transposed = weight.view(50, 100).t()
        first = torch.empty(1000, device="meta")
        second = first * 2
        view = second[10:]
        del first, second
        third = view + 1  # 990 beside the 1000 that the view holds
        del view
        fourth = third * 2
    assert memory.peak_bytes == 4 * 2000
    assert memory.live_bytes == 4 * (990 + 990)
    del third, fourth
    assert memory.live_bytes == 0
    assert transposed.shape == (100, 50)


def test_operations_and_attention_are_counted_as_fused_kernels_do_them():
    query, key, value = (torch.empty(2, 3, 50, 8, device="meta", requires_grad=True) for _ in range(3))
    with StepCounter() as meter:
        out = meter.attention(query, key, value, is_causal=True)
        out.sum().backward()
        _ = torch.empty(5, 7, device="meta") @ torch.empty(7, 11, device="meta")
    forward = 2 * 2 * (2 * 3) * 50 * 50 * 8
    assert meter.flops == forward + int(2.5 * forward) + 2 * 5 * 7 * 11
    assert meter.peak_bytes < 4 * 2 * 3 * 50 * 50  # less than its weights


def test_sharding_divides_what_it_shards():
    from promptnet.training.dry_run.plan import _memory

    def total(strategy: str, num_devices: int, **more: Any) -> int:
        setting = Setting(strategy=strategy, num_devices=num_devices, precision="32-true", **more)
        return sum(_memory(1000, 1000, setting, "adamw").values())

    assert total("auto", 1) == 16_000
    assert total("ddp", 8) == 20_000
    assert total("ddp bucket_view", 8) == 16_000
    assert total("deepspeed_stage_2", 8) == 4_000 + 12_000 // 8
    assert total("fsdp", 8) == 16_000 // 8
    assert total("auto", 1, averaged=True) == 20_000


def test_the_setting_is_read_from_the_config():
    config = load("sdxl")
    config["trainer"] |= {"num_nodes": 2, "devices": 8, "strategy": "ddp"}
    setting = setting_of(config)
    expected = Setting(2, 1024, ("latents",), "bf16-mixed", 16, "ddp", 4, True, 80_000)
    drawing = Method(4, 4, 25, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    assert setting == replace(expected, validate_every=8000, drawing=drawing)
    stage = build_on_meta(load("sd2")["model"]["init_args"])
    assert meta_batch(stage, Setting())["reference_pixels"].shape == (8, 3, 512, 512)


@pytest.mark.parametrize(
    ("devices", "accelerator", "expected"),
    [
        ("auto", "auto", 8),
        (-1, "cuda", 8),
        ("auto", "cpu", 1),
        ("3", "cuda", 3),
        ("0,2", "cuda", 2),
        ([0, 1, 5], "gpu", 3),
    ],
)
def test_all_devices_are_those_of_this_machine(
    devices: Any, accelerator: str, expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    config = load("sdxl")
    config["trainer"] |= {"num_nodes": 2, "devices": devices, "accelerator": accelerator, "strategy": "ddp"}
    setting = setting_of(config)
    assert setting.num_devices == 2 * expected
    assert setting.takes_all == (devices in ("auto", -1))


def test_a_validation_is_counted_with_what_it_draws():
    config = load("sd2")
    config["trainer"] |= {"num_nodes": 1, "strategy": "auto", "accumulate_grad_batches": 2}
    drawing = Method(4, 4, 25, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    assert setting_of(config).drawing == drawing
    config["trainer"]["strategy"] = "fsdp"
    assert setting_of(config).drawing is None  # no device holds the encoder

    base = {"base_dir": str(ROOT / "checkpoints/tiny"), "region_kernel_size": 1}
    plain = Setting(batch_size=4, resolution_px=64, features=("latents", "vision"), precision="32-true", max_steps=100)
    loss = replace(plain, num_validation=9, validate_every=10)
    few, many = (replace(loss, drawing=Method(2, 3, num_steps)) for num_steps in (5, 10))
    plans = [make_plan(base, setting) for setting in (plain, loss, few, many)]
    flops = [plan.validation_flops for plan in plans]
    assert flops[0] == 0
    assert flops[1] < 3 * plans[0].step_flops  # three batches, forward alone
    assert flops[1] < flops[2] < flops[3]
    guided_step, rest = (flops[3] - flops[2]) / 5, flops[2] - flops[1]
    assert rest > 5 * guided_step  # the decoder
    lines = "\n".join(plans[2].lines())
    assert "6 images drawn in 5 steps; every 10 steps it is" in lines
    more = {plan.memory_bytes.get("what a validation takes beyond these", 0) for plan in plans[:2]}
    assert more == {0}


def test_a_clip_of_its_own_is_counted_at_its_true_size():
    clip = clip_model("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    assert count(clip) == 986_109_441
    work = _clip_work(Method(clip="laion/CLIP-ViT-H-14-laion2B-s32B-b79K"))
    assert work.peak_bytes > 2 * 986_109_441


def test_a_dry_run_prints_config_and_plan_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from promptnet.training.cli import TrainingCLI

    run = ["--run_dir", str(tmp_path / "run"), "--trainer.accumulate_grad_batches", "2"]
    args = ["fit", "--config", "configs/pretrain/tiny-table.yaml", *run, "--dry-run"]
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        TrainingCLI(args=args)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "accumulate_grad_batches: 2" in printed
    told_of = (
        "train (promptnet)",
        "weight average",
        "activations",
        "TFLOP on each device",
        "a validation:",
        "the run:",
    )
    for told in told_of:
        assert told in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "stage",
    ["embedded.vae.AutoencoderStage", "embedded.encoder.AvatarPretrainStage", "pretrain.table_stage.TableEncoderStage"],
)
def test_a_dry_run_of_another_stage_is_refused(stage: str):
    from promptnet.training.dry_run.plan import dry_run

    with pytest.raises(ValueError, match=f"the model is {stage.rpartition('.')[2]}: leave out --dry-run"):
        dry_run({"model": {"class_path": f"promptnet.training.{stage}"}}, "")
