"""Where the time of per-user tuning goes.

    python benchmarks/customize.py --base checkpoints/tiny [--image me.png] [--steps 50] [--save-to folder]

Without --base it builds the embedded model's shapes with random weights: the times are the same, the losses mean
nothing.
Tuning runs to its last step here (no early stop), so this is the longest it takes at these settings.
"""

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from promptnet import PromptNetModel, PromptNetPipeline
from promptnet.inference.subject.subject import Subject
from promptnet.inference.tuning import customize

# What is timed: functions of the tuning module. Time inside a nested one counts for that one alone.
PARTS = {
    "encoding images and views": "prepare_material",
    "drawing batches": "training_batch",
    "PromptNet": "pseudo_words",
    "text encoder": "encode_words",
    "U-Net forward": "predict",
    "backward": "backward",
    "validation": "validation_loss",
    "fingerprint": "fingerprint",
}


class Stopwatch:
    """Seconds and calls by part; while one part runs inside another only the inner one's clock is on."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timing(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed. What runs inside a look at the held-out levels counts as validation."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if "validation" in self._running:
                return function(*args, **kwargs)
            self._switch()
            self._running.append(part)
            self.calls[part] += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._running.pop()

        return timed


def random_pipeline() -> PromptNetPipeline:
    """The embedded model's parts with random weights."""
    from promptnet.models import tiny

    torch.manual_seed(0)
    tokenizer = tiny.train_tokenizer(["a photo of a person"] * 2)
    clip, unet = tiny.build_clip(tokenizer), tiny.build_unet()
    pipe = PromptNetPipeline(
        vae=tiny.build_vae(),
        text_encoder=clip.text_model,  # pyright: ignore[reportArgumentType]
        tokenizer=tokenizer,
        unet=unet,
        scheduler=tiny.build_scheduler(),
        promptnet=PromptNetModel.from_unet(
            unet, vision_dim=tiny.VISION_WIDTH, prompt_channel=tiny.TEXT_WIDTH, region_kernel_size=2
        ),
        image_encoder=clip.vision_model,  # pyright: ignore[reportArgumentType]
        feature_extractor=tiny.build_image_processor(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def timed_run(pipe: PromptNetPipeline, image: Any, options: dict[str, Any], folder: Path) -> tuple[Stopwatch, float]:
    """Customise and save once, and how long the whole took."""
    watch = Stopwatch()
    with ExitStack() as stack:
        for part, name in PARTS.items():
            timed = watch.timing(part, getattr(customize, name))
            stack.enter_context(patch.object(customize, name, timed))
        start_s = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        subject = customize.customize_subject(pipe, image, generator=generator, progress_bar=False, **options)
        watch.timing("saving", subject.save)(folder / "subject.safetensors")
        return watch, time.perf_counter() - start_s


def report(watch: Stopwatch, total_s: float) -> None:
    for part in [*PARTS, "saving"]:
        seconds, calls = watch.seconds[part], watch.calls[part]
        print(f"{part:<28} {seconds:7.2f} s  {seconds / total_s:4.0%}  {calls:4d} calls")
    other_s = total_s - sum(watch.seconds.values())
    print(f"{'optimiser and the rest':<28} {other_s:7.2f} s  {other_s / total_s:4.0%}")
    print(f"{'total':<28} {total_s:7.2f} s")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Where the time of per-user tuning goes.")
    parser.add_argument("--base", type=Path, help="base model; default: the embedded model's shapes, random weights")
    parser.add_argument("--image", type=Path, help="image of one person; default: noise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--save-to", type=Path, help="keep the subject file in this folder")
    args = parser.parse_args(argv)

    pipe = random_pipeline() if args.base is None else PromptNetPipeline.from_pretrained(args.base)
    pipe.to(args.device)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    image = noise if args.image is None else args.image
    options = {
        "steps": args.steps,
        "batch_size": args.batch_size,
        "patience": 10**6,
        "registration": "never",
        "allow_foreign": True,
    }
    print(f"{torch.get_num_threads()} threads, {args.device}, torch {torch.__version__}, base {args.base or 'random'}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.save_to or Path(scratch)
        watch, total_s = timed_run(pipe, image, options, folder)
        report(watch, total_s)
        path = folder / "subject.safetensors"
        print(f"subject file: {path.stat().st_size / 2**20:.2f} MiB, {len(Subject.load(path).loras)} loras")


if __name__ == "__main__":
    main()
