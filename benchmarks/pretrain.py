"""Pretraining: our trainer against a straightforward one, on the same model and data in the same run.

    python benchmarks/pretrain.py --config configs/pretrain/tiny-prepared.yaml --steps 40 --pairs 5
    python benchmarks/pretrain.py --shape sd2 --steps 20 --warmup 5 --pairs 3

The first needs the set and the folder that docs/pretrain.md makes ("Try it on avatars"). The second needs nothing but
a GPU: `--shape` makes a base model of that shape with random weights and a set of random images in a temporary folder
(4 GB for sd2), and trains on them by configs/pretrain/sd2.yaml with both features precomputed.

Both are measured on a quiet machine, in pairs of runs of which every second begins with the other trainer; the ratio is
the median over pairs. Ours is what `python train.py fit` runs: the config's data module, precision, caches and
averaging, with what a run tells its owner (gradients, speed, metrics.jsonl), without validation and checkpoints. The
straightforward one does what the published code does in each step: opens the images, encodes them with the VAE (one
image where reference and target are the same) and the reference with the image encoder, encodes the prompt, runs
everything eagerly in the usual memory layout, clips, and steps AdamW; it reads no cache and keeps no weight average.

Anything after the named options goes to LightningCLI, for example --data.init_args.batch_size 8.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import Callback
from random_base import SHAPES, write_random_base, write_random_set
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from promptnet.datasets.avatars.module import pixels_of
from promptnet.datasets.faces.pairs import Caches, FacePairs
from promptnet.inference.sampling.schedule import prediction_type
from promptnet.inference.tuning.loss import denoising_target, noised
from promptnet.models.text import encode_prompts
from promptnet.training.callbacks import (
    CollapseAlarm,
    Throughput,
    ValidationImages,
    ValidationMeasures,
    WriteModelCard,
)
from promptnet.training.callbacks.throughput import num_rows
from promptnet.training.cli import TrainingCLI

LEFT_OUT = (ValidationImages, ValidationMeasures, CollapseAlarm, WriteModelCard)


def now_s() -> float:
    """Seconds, with the accelerator's work done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepTimes(Callback):
    """When each batch of a training was done."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.rows = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.times_s.append(now_s())
        self.rows = num_rows(batch)


def build(args: argparse.Namespace, options: Sequence[str], run_dir: str) -> TrainingCLI:
    """Model, data and trainer as train.py makes them, for a few steps."""
    fixed = [
        *("--config", str(args.config), "--run_dir", run_dir, "--trainer.max_steps", str(args.warmup + args.steps)),
        *("--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--checkpoint.every_n_train_steps", "1000000", "--model.init_args.export_dir", f"{run_dir}/encoder"),
        *("--trainer.devices", "1", "--trainer.log_every_n_steps", str(args.steps)),
    ]
    cli = TrainingCLI(run=False, args=[*fixed, *options], save_config_callback=None)
    trainer: Any = cli.trainer
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, LEFT_OUT)]
    return cli


def ours(cli: TrainingCLI, warmup: int) -> tuple[float, dict[str, float]]:
    """Images a second of our trainer, and what it says about its own speed."""
    times, trainer = StepTimes(), cli.trainer
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks.insert(0, times)
    if not any(isinstance(callback, Throughput) for callback in callbacks):
        callbacks.insert(1, Throughput())
    trainer.fit(cli.model, datamodule=cli.datamodule)
    seconds = times.times_s[-1] - times.times_s[warmup - 1]
    said = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("speed/")}
    return times.rows * (len(times.times_s) - warmup) / seconds, said


class RawPairs(Dataset[dict[str, Any]]):
    """The data module's pairs as images, opened anew for every sample: no cache is read."""

    def __init__(self, pairs: Any) -> None:
        faces = isinstance(pairs, FacePairs)
        self.pairs: Any = replace(pairs, caches=Caches()) if faces else pairs
        self.has_one_image = pairs.reference == "same-image" if faces else pairs.as_published

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        item = self.pairs[sample]
        raw = {"reference": item["reference_pixels"], "prompt": item["prompt"]}
        if self.has_one_image:
            return raw
        if "target_pixels" in item:
            return {**raw, "target": item["target_pixels"]}
        return {**raw, "target": pixels_of(self.pairs.targets.pixels(item["target_index"]))}


class StraightforwardTrainer:
    """The published loop: everything encoded in every step, nothing kept, nothing compiled.

    Args:
        stage: whose networks it copies before they are changed by a training.
        device: where it runs.
        autocast: the precision's context, made anew for every step.
    """

    def __init__(self, stage: Any, device: torch.device, autocast: Any) -> None:
        if "text_encoder_2" in stage.frozen:
            raise ValueError("the straightforward trainer has one text encoder: give a config for SD 1.x or SD 2.x")
        self.device, self.autocast = device, autocast
        self.parts = {name: self._plain(part) for name, part in stage.frozen.items()}
        self.promptnet = self._plain(stage.promptnet).train().requires_grad_(True)
        self.tokenizer, self.alphas = stage.tokenizer, stage.alphas.clone().to(device)
        self.prediction = prediction_type(stage.scheduler)
        self.optimizer = torch.optim.AdamW(self.promptnet.parameters(), lr=1e-5)

    def _plain(self, network: nn.Module) -> Any:
        copied: Any = copy.deepcopy(network)
        return nn.Module.to(copied, device=self.device).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def step(self, batch: dict[str, Any]) -> None:
        """One optimiser step."""
        with self.autocast():
            target = batch["target"].to(self.device) if "target" in batch else None
            loss = self._loss(batch["reference"].to(self.device), target, batch["prompt"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.promptnet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _loss(self, reference: torch.Tensor, target: torch.Tensor | None, prompts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            reference_latents = self._encoded(reference)
            latents = reference_latents if target is None else self._encoded(target)
            vision = self._seen(reference)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(len(self.alphas), (len(latents),), device=self.device)
        alphas = self.alphas[timesteps]
        noisy = noised(latents, noise, alphas)
        words = self.promptnet(reference_latents, timesteps, vision, noisy_latents=noisy).pseudo_words
        rows = [{"S*": row} for row in words]
        states = encode_prompts(self.tokenizer, self.parts["text_encoder"], prompts, rows).hidden_states
        predicted = self.parts["unet"](noisy, timesteps, states).sample
        return F.mse_loss(predicted.float(), denoising_target(latents, noise, alphas, self.prediction).float())

    def _encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.parts["vae"]
        return vae.encode(pixels.to(vae.dtype)).latent_dist.sample().float() * vae.config["scaling_factor"]

    def _seen(self, pixels: torch.Tensor) -> torch.Tensor:
        text_encoder = self.parts["image_encoder"]
        side_px = text_encoder.config.image_size
        if pixels.shape[-1] != side_px:
            pixels = F.interpolate(pixels, (side_px, side_px), mode="bicubic", antialias=True)
        return text_encoder(pixel_values=pixels.to(text_encoder.dtype)).last_hidden_state


def straightforward(trainer: StraightforwardTrainer, pairs: Any, batch_size: int, workers: int, steps: range) -> float:
    """Images a second of the straightforward trainer, without its first `steps.start` steps."""
    loader = DataLoader(RawPairs(pairs), batch_size=batch_size, num_workers=workers, shuffle=True, drop_last=True)
    batches = endless(loader)
    for _ in range(steps.start):
        trainer.step(next(batches))
    start_s = now_s()
    for _ in steps:
        trainer.step(next(batches))
    return batch_size * len(steps) / (now_s() - start_s)


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def autocast_of(precision: str, device: torch.device) -> Any:
    """The context of a mixed precision, or one that does nothing."""
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    dtype = kinds.get(precision)
    return (lambda: torch.autocast(device.type, dtype)) if dtype else nullcontext


def one_pair(
    args: argparse.Namespace, options: Sequence[str], run_dir: str, ours_first: bool
) -> tuple[float, float, dict[str, float]]:
    """Images a second of either, on fresh copies of the same networks."""
    cli = build(args, options, run_dir)
    device = cli.trainer.strategy.root_device
    plain = StraightforwardTrainer(cli.model, device, autocast_of(str(cli.trainer.precision), device))
    module: Any = cli.datamodule
    steps = range(args.warmup, args.warmup + args.steps)

    def slow() -> float:
        if not hasattr(module, "train"):  # ours has not run yet
            module.prepare_data()
            module.setup("fit")
        return straightforward(plain, module.train, module.batch_size, module.num_workers, steps)

    if ours_first:
        fast, said = ours(cli, args.warmup)
        return fast, slow(), said
    slowly = slow()
    fast, said = ours(cli, args.warmup)
    return fast, slowly, said


def made(args: argparse.Namespace, folder: Path) -> tuple[Path, list[str]]:
    """A base model and a set of the asked shape; the config that trains on them, and what it is told."""
    config = Path("configs/pretrain") / {"tiny": "tiny-prepared.yaml", "sd2": "sd2.yaml"}[args.shape]
    side_px = yaml.safe_load(config.read_text())["data"]["init_args"]["resolution_px"]
    base = write_random_base(folder / "base", args.shape)
    faces = write_random_set(folder / "faces", args.images, side_px)
    model = [f"--model.init_args.base_dir={base}", "--model.init_args.vision_id=null"]
    data = [f"--data.init_args.data_dir={faces}", f"--data.init_args.cache_dir={folder / 'cache'}"]
    data += ["--data.init_args.validation_dir=null", "--data.init_args.num_validation=0"]
    return config, [*model, *data, "--data.init_args.features=[latents,vision]", "--data.init_args.captioned=0"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Our pretraining against a straightforward trainer.")
    parser.add_argument("--config", type=Path, default=Path("configs/pretrain/tiny-prepared.yaml"))
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights and images, in place of --config")
    parser.add_argument("--images", type=int, default=256, help="of the set that --shape makes")
    parser.add_argument("--steps", type=int, default=40, help="measured steps of a run")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, in turn")
    args, options = parser.parse_known_args(argv)
    if min(args.steps, args.warmup, args.pairs) < 1:
        parser.error("--steps, --warmup and --pairs must be at least 1")

    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            args.config, given = made(args, Path(folder))
            options = [*given, *options]
        for number in range(args.pairs):
            pairs.append(one_pair(args, options, f"{folder}/run-{number}", ours_first=number % 2 == 0))
    fast, slow = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    what = f"{args.config}{f' at the shape of {args.shape} with random weights' if args.shape else ''}"
    print(f"\n{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, {what}, {args.steps} steps")
    print(f"our trainer              {fast:9.2f} images/s")
    print(f"straightforward trainer  {slow:9.2f} images/s")
    print(f"ratio                    {ratio:9.2f}   (median of {len(pairs)} paired runs)")
    for name, value in pairs[-1][2].items():
        print(f"{name:<24} {value:9.4g}   (ours, last run)")


if __name__ == "__main__":
    main()
