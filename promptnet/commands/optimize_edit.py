"""`promptnet optimize-edit`: two prompts in, an edit card out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.commands.files import check_output
from promptnet.commands.loading import EMBEDDED, find_base, pick_device, quiet
from promptnet.commands.progress import status

if TYPE_CHECKING:
    from rich.progress import Progress


def optimize_edit(
    from_: str,
    to: str,
    out: Path,
    image: list[Path] | None = None,
    num_seeds: int = 8,
    batch_size: int = 4,
    steps: int = 25,
    iterations: int = 20,
    scheduler: str = "DDIMScheduler",
    guidance_scale: float = 3.0,
    learning_rate: float = 0.05,
    preserve: float = 0.05,
    seed: int = 0,
    clip: str | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Learn an edit: how much of each of two prompts every denoising step is to see.

    Args:
        from_: the prompt without the attribute, for example "a portrait of a person"
        to: the same prompt with it, for example "a happy portrait of a person"
        out: the edit card to write (.safetensors)
        image: learn on these pictures, of the base model's size, in place of seeds
        num_seeds: how many seeds it is learned on
        batch_size: of those at once; memory grows with it
        steps: denoising steps, and weights
        iterations: of the optimisation
        scheduler: DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler or EulerDiscreteScheduler
        guidance_scale: of the drawing
        learning_rate: of the optimisation
        preserve: weight of staying like the original, against changing as the prompt does
        seed: makes the outcome reproducible
        clip: folder of the CLIP that judges the change (null: the embedded model's own)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    check_output(out, (".safetensors",))
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    found, place = find_base(base), pick_device(device)
    quiet()
    with status("loading the base model"):
        from promptnet.training.disentangle import DisentangleStage
        from promptnet.training.disentangle_data import SeedDataModule
        from promptnet.training.disentangle_parts import DirectionalClip, VisionPerceptual

        stage = DisentangleStage(
            from_,
            to,
            str(out),
            found,
            num_steps=steps,
            scheduler=scheduler,
            guidance_scale=guidance_scale,
            learning_rate=learning_rate,
            parts=[VisionPerceptual(preserve, clip), DirectionalClip(clip_dir=clip)],
            pictures=[str(path) for path in image or []],
            picture_every=0,
            seed=seed,
        )
    count = len(image) if image else num_seeds
    start_s = time.perf_counter()
    fit(stage, SeedDataModule(count, min(batch_size, count), seed), place, iterations)
    print(f"{out}: learned in {time.perf_counter() - start_s:.1f} s")


def fit(stage: Any, data: Any, device: str, iterations: int) -> None:
    """Run the stage with a bar on stderr, and nothing on the disk but the card."""
    import logging

    from lightning.pytorch import Trainer
    from rich.console import Console
    from rich.progress import Progress

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    accelerator = "gpu" if device.startswith("cuda") else device.split(":")[0]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        Trainer(
            max_steps=iterations,
            accelerator=accelerator,
            devices=1,
            logger=False,
            callbacks=[bar_callback(progress, iterations)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        ).fit(stage, datamodule=data)


def bar_callback(progress: Progress, iterations: int) -> Any:
    """A Lightning callback that moves a bar."""
    from lightning.pytorch.callbacks import LambdaCallback

    task = progress.add_task("learning the edit", total=iterations)
    return LambdaCallback(on_train_batch_end=lambda *_: progress.advance(task))
