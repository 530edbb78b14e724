"""Measure what other frames cost the embedded model, and what the search for a frame brings back.

References of test people are moved, scaled, mirrored and bordered; each person is encoded with and without the search
(`registration`), drawn once, and read by the test judge. Identity is the share of right fields, with a bootstrap
interval over people. Photographs that installed packages bring are counted by verdict.

    python benchmarks/frames.py --people 24 --out outputs/frames
"""

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from promptnet import PromptNetPipeline
from promptnet.datasets.avatars.person import IDENTITY_FIELDS, Avatar, sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.datasets.photographs import package_photographs
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.tasks import FRAMES
from promptnet.inference import Registration, admit
from promptnet.io.atomic import make_folder, write_whole
from promptnet.metrics.bootstrap import difference, interval
from promptnet.metrics.judge import load_judge, read_images

CHOSEN = ("plain", "zoom-0.7", "zoom-0.85", "zoom-1.2", "zoom-1.4", "shift", "mirrored", "border", "small", "jpeg-60")
SEARCHES: tuple[Registration, ...] = ("never", "auto")


def framed(avatar: Avatar, frame: str) -> Image.Image:
    """The avatar's image in a frame, 64 px."""
    image = FRAMES[frame](render_avatar(avatar), avatar.attributes.background)
    return image.resize((64, 64), Image.Resampling.LANCZOS)


def drawn(pipe: Any, image: Image.Image, search: Registration, seed: int) -> Image.Image:
    """The person in an image, drawn once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = pipe.encode(image, class_word="a person", registration=search, allow_foreign=True)
    generator = torch.Generator().manual_seed(seed)
    return pipe("a portrait of S*", subject=subject, generator=generator, num_inference_steps=20).images[0]


def verdict(pipe: Any, image: Path) -> str | None:
    """What is said of an image after the search for its frame."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return admit(pipe, image, allow_foreign=True)[0].verdict


def identities(judge: Any, images: Sequence[Image.Image], avatars: Sequence[Avatar]) -> np.ndarray:
    """Share of right identity fields, image by image: (N,)."""
    records = read_images(judge, images).records
    pairs = zip(records, (avatar.record() for avatar in avatars), strict=True)
    return np.array([np.mean([read[field] == true[field] for field in IDENTITY_FIELDS]) for read, true in pairs])


def measure(pipe: Any, judge: Any, avatars: Sequence[Avatar], frame: str) -> dict[str, Any]:
    """One line of the table."""
    images = [framed(avatar, frame) for avatar in avatars]
    found = {
        search: identities(judge, [drawn(pipe, image, search, seed) for seed, image in enumerate(images)], avatars)
        for search in SEARCHES
    }
    verdicts = Counter(pipe.assess(image).verdict for image in images)
    line: dict[str, Any] = {search: interval(values).record() for search, values in found.items()}
    line["auto - never"] = difference(found["auto"], found["never"]).record()
    return line | {"verdicts": dict(verdicts)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="checkpoints/tiny")
    parser.add_argument("--judge", type=Path, help="folder of the judge; by default the one beside the base model")
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--frames", nargs="+", choices=list(FRAMES), default=list(CHOSEN))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = make_folder(args.out)
    pipe: Any = PromptNetPipeline.from_pretrained(args.base)
    pipe.set_progress_bar_config(disable=True)
    judge = load_judge(judge_folder(args.base, "test", args.judge))
    avatars = [sample_avatar(20_000, place, "test") for place in range(args.people)]
    table: dict[str, Any] = {}
    for frame in args.frames:
        table[frame] = measure(pipe, judge, avatars, frame)
        write_whole(folder / "frames.json", json.dumps(table, indent=1), public=True)
        print(frame, json.dumps(table[frame]), flush=True)
    print("photographs", dict(Counter(verdict(pipe, photograph) for photograph in package_photographs())))


if __name__ == "__main__":
    main()
