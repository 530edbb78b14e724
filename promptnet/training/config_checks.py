"""What a run's configuration may not say, in one line each, before anything is built.

Errors of the libraries below name neither the option nor the fix, or come once everything is loaded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_LARGEST_SEED = 2**32 - 1  # of numpy
_AT_LEAST_ONE = ("data.init_args.batch_size", "data.init_args.num_images", "data.init_args.num_seeds")


def check_config(options: Mapping[str, Any]) -> None:
    """Check single values.

    Args:
        options: of a resolved `fit` configuration by their dotted names.

    Raises:
        ValueError: names the option and what it may be.
    """
    seed = options.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"seed_everything={seed} must be a whole number from 0 to {_LARGEST_SEED}")
    if (steps := options.get("trainer.max_steps", -1)) < -1:
        raise ValueError(f"trainer.max_steps={steps} must be at least 0, or -1 for training without end")
    for name in _AT_LEAST_ONE:
        if isinstance(number := options.get(name), int) and number < 1:
            raise ValueError(f"{name}={number} must be at least 1")
    rate = options.get("model.init_args.learning_rate", 0)
    if isinstance(rate, float) and not 0 <= rate < math.inf:
        raise ValueError(f"model.init_args.learning_rate={rate} must be a finite number of at least 0")
    if not options.get("model.init_args.base_dir", "given"):
        raise ValueError("model.init_args.base_dir is not set: name the base model's folder, or its id on the Hub")


def check_run_dir(run_dir: Path) -> None:
    """Refuse a folder that cannot be made or written, before anything is loaded.

    Raises:
        ValueError: it or a folder above it is a file, or nobody here may write there.
    """
    place = next(path for path in (run_dir, *run_dir.parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"--run_dir {run_dir} cannot be a folder: {place} is a file. Give the run another --run_dir")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--run_dir {run_dir} cannot be written: change who may write {place}, or give another")


def check_config_files(words: Iterable[str]) -> None:
    """Refuse configuration files that are no text in UTF-8, which the parser says without their name.

    Args:
        words: of the command line.

    Raises:
        ValueError: names the file.
    """
    words = list(words)
    named = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    named += [words[place + 1] for place, word in enumerate(words[:-1]) if word == "--config"]
    for path in named:
        if not Path(path).is_file():  # the parser says so
            continue
        try:
            Path(path).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"--config {path} is no text in UTF-8 ({error}): save it as UTF-8") from error
