"""The methods of `promptnet customize` beside PromptNet: what each needs, and how it is called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Generator

    from promptnet.baselines.config import BaselineConfig
    from promptnet.inference.subject.subject import Subject

Method = Literal["promptnet", "textual-inversion", "dreambooth-lora", "dreambooth", "e4t"]
_MAX_HEADER = 16 * 1024 * 1024


def needs_encoder(paths: Iterable[Path]) -> bool:
    """Return whether one of these subject files needs PromptNet, from their headers alone.

    A file that cannot be read does: loading it says what is wrong.
    """
    return any("words" not in _header(path) for path in paths)


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(length)) if length <= _MAX_HEADER else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_method(
    method: Method, out: Path, e4t: Path | None, method_config: Path | None, promptnet: str | None
) -> None:
    """Check the options that go with a method, and those that go with another.

    Raises:
        ValueError: one is missing, or means nothing here.
    """
    if (method == "e4t") != (e4t is not None):
        raise ValueError("--method e4t and --e4t go together: name the folder that promptnet pretrain-e4t wrote")
    if method == "promptnet" and method_config is not None:
        raise ValueError("--method-config is of the baselines: give --method textual-inversion, dreambooth-lora, ...")
    if method != "promptnet" and promptnet is not None:
        raise ValueError(f"--promptnet means nothing with --method {method}, which needs no encoder: leave it out")
    if method == "dreambooth" and out.suffix:
        raise ValueError(f"--out '{out}' must be a folder without an ending: DreamBooth writes a whole base model")


def check_budget(method: Method, seconds: float | None, vram_gb: float | None) -> None:
    """Check the time and memory that customising may take.

    Raises:
        ValueError: one is not above 0, or the method does not plan.
    """
    for option, value in {"--seconds": seconds, "--vram-gb": vram_gb}.items():
        if value is None:
            continue
        if not 0 < value < float("inf"):
            raise ValueError(f"{option} {value} must be a number above 0")
        if method != "promptnet":
            raise ValueError(f"{option} means nothing with --method {method}: leave it out, and set --steps")


def on_prior(done: int, total: int) -> None:
    """Say how many prior images there are, on a terminal."""
    if sys.stderr.isatty():
        print(f"\rprior images: {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


def run_method(
    method: Method,
    pipe: Any,
    images: list[Any],
    class_word: str,
    config: BaselineConfig,
    *,
    out: Path,
    e4t: Path | None,
    generator: Generator,
    callback: Callable[[Any], object],
) -> Subject | None:
    """Run a baseline.

    Returns:
        The subject; None where the method has written a base model.
    """
    from promptnet import baselines

    options: dict[str, Any] = {"generator": generator, "progress_bar": False, "callback": callback}
    given: Any = config
    if method == "textual-inversion":
        return baselines.textual_inversion_subject(pipe, images, class_word, given, **options)
    if method == "dreambooth-lora":
        return baselines.dreambooth_lora_subject(pipe, images, class_word, given, **options, on_prior=on_prior)
    if method == "dreambooth":
        baselines.dreambooth_folder(pipe, images, out, class_word, given, **options, on_prior=on_prior)
        return None
    assert e4t is not None
    return baselines.e4t_subject(pipe, images, e4t, given, **options)
