"""The parts of the GPU run that train: a pretraining step, and runs that are stopped and go on."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from notes import Notes

ROOT = Path(__file__).parents[2]
WAYS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("eager", {}, "adamw"),
    ("checkpointed", {"gradient_checkpointing": True}, "adamw"),
    ("8-bit optimiser", {}, "adamw8bit"),
    ("compiled", {"compile_backend": "inductor"}, "adamw"),
)
"""Name, parameters of PretrainStage, optimiser; what may take longest comes last."""


def pretraining(notes: Notes) -> None:
    """A step of pretraining as train.py takes it, features computed beforehand: speed, utilisation, memory."""
    for name, changes, optimizer in WAYS:
        if optimizer == "adamw8bit" and (importlib.util.find_spec("bitsandbytes") is None or notes.is_toy):
            notes.add(f"{name}: not run", "needs a GPU and bitsandbytes")
            continue
        notes.clear_memory()
        _time_steps(notes, name, changes, optimizer)


def _time_steps(notes: Notes, name: str, changes: dict[str, Any], optimizer_name: Any) -> None:
    from pretrain_memory import materialise, real_batch
    from yaml import safe_load

    from promptnet.training.callbacks.throughput import counting_flops, peak_tflops, utilisation
    from promptnet.training.dry_run.plan import Setting, build_on_meta
    from promptnet.training.pretrain.precision import frozen_dtype
    from promptnet.training.stage import build_optimizer

    config = ROOT / "configs" / "pretrain" / ("tiny.yaml" if notes.is_toy else "sd2.yaml")
    options = {**safe_load(config.read_text())["model"]["init_args"], **changes}
    if notes.is_toy and "compile_backend" in changes:
        options["compile_backend"] = "eager"
    device = torch.device(notes.device)
    precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    setting = Setting(2 if notes.is_toy else 8, 64 if notes.is_toy else 512, ("latents", "vision"), precision)
    stage = build_on_meta(options)
    materialise(stage, precision, device)
    optimizer = build_optimizer(optimizer_name, [{"params": list(stage.promptnet.parameters())}], 1e-6, (0.9, 0.99))
    batch = real_batch(stage, setting, device)

    def step() -> None:
        with torch.autocast(device.type, frozen_dtype(precision), enabled="mixed" in precision):
            loss = stage.loss(batch, "train")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with counting_flops([stage, *stage.frozen.values()]) as counted:
        step()
    stage.compile_blocks()
    images_per_s = setting.batch_size / notes.seconds(step, 3)
    notes.add(name, images_per_s, "images/s")
    needed = (counted.total - counted.checkpointed) / setting.batch_size
    notes.add(f"{name}: operations for an image", needed / 1e12, "TFLOP")
    peak = peak_tflops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    if peak:
        notes.add(f"{name}: model FLOP utilisation", 100 * utilisation(needed, images_per_s, peak), "%")
    notes.add_peak(f"{name}: peak memory")


def sharding(notes: Notes) -> None:
    """FSDP and ZeRO-2 on one card: a run is stopped, has saved, and goes on. Neither runs on a CPU: there DDP does."""
    overlays = ROOT / "configs" / "trainer"
    if not notes.device.startswith("cuda"):
        _stop_and_resume(notes, "DDP, as FSDP and ZeRO-2 need a GPU", [f"--config={overlays / 'ddp.yaml'}"])
        return
    _stop_and_resume(notes, "FSDP", [f"--config={overlays / 'fsdp.yaml'}"])
    if importlib.util.find_spec("deepspeed") is None:
        notes.add("ZeRO-2: not run", "needs deepspeed")
    else:
        _stop_and_resume(notes, "ZeRO-2", [f"--config={overlays / 'deepspeed_zero2.yaml'}"])


def preemption(notes: Notes) -> None:
    """SIGTERM to a run on one device with averaged weights: it saves, and the repeated command goes on."""
    from training_runs import AVERAGED

    _stop_and_resume(notes, "one device", AVERAGED)


def _stop_and_resume(notes: Notes, name: str, options: Sequence[str]) -> None:
    from training_runs import TrainingRun, base_of

    base = base_of(notes.size, notes.device, notes.path.parent)
    run_dir = notes.path.with_suffix("") / name.partition(",")[0].replace(" ", "-")  # run.py removes it after the part
    run = TrainingRun(run_dir, base, notes.device, 2 if notes.is_toy else 8, options)
    stopped = run.stop_and_resume(1 if notes.is_toy else 3)
    notes.add(f"{name}: from SIGTERM to the end, all saved", stopped.stop_s, "s")
    notes.add(f"{name}: checkpoint", stopped.checkpoint_gib, "GiB")
    notes.add(f"{name}: the repeated command, one step more and the encoder written", stopped.resume_s, "s")
