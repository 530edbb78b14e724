"""`promptnet doctor`: what is installed, which devices there are, and whether a base model fits."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from promptnet.commands._loading import EMBEDDED, find_base, quiet

LIBRARIES = ("promptnet", "torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "safetensors")
EXTRAS = ("train", "avatars", "faces", "eval", "serve", "ray", "verify", "onnx")
GIB = 2**30


def doctor(base: str = EMBEDDED) -> None:
    """Print versions, missing extras, devices with their memory, and whether the base model's weights fit.

    Args:
        base: base model, a folder in diffusers layout
    """
    folder = Path(find_base(base))
    if not folder.is_dir():
        raise ValueError(f"base model '{base}' is not on this machine: give --base a folder in diffusers layout")
    lines = [*_versions(), *_extras()]
    quiet()
    weights = weights_bytes(folder)
    lines += [("weights of the base model", f"{weights / GIB:.2f} GiB in '{base}'"), *_devices(weights)]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def weights_bytes(folder: Path) -> int:
    """Return the size of all safetensors files of a pipeline's components."""
    return sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed."""
    from packaging.requirements import Requirement

    needed = map(Requirement, requires("promptnet") or ())
    wanted = [each.name for each in needed if each.marker is not None and each.marker.evaluate({"extra": extra})]
    return [name for name in wanted if _version(name) is None]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _versions() -> Iterator[tuple[str, str]]:
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in LIBRARIES:
        yield name, _version(name) or "not installed"


def _extras() -> Iterator[tuple[str, str]]:
    for extra in EXTRAS:
        missing = missing_packages(extra)
        what = f"lacks {', '.join(missing)}: pip install 'promptnet[{extra}]'" if missing else "installed"
        yield f"extra {extra}", what


def _devices(weights: int) -> Iterator[tuple[str, str]]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {_fits(memory, weights)}"
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        yield (
            f"cuda:{number}",
            f"{torch.cuda.get_device_name(number)}, {_fits(free, weights)} ({total / GIB:.1f} in all)",
        )
    if torch.backends.mps.is_available():
        yield "mps", "there, untested"


def _fits(free: int, weights: int) -> str:
    """Say how much memory there is; activations need room beside the weights, so the same again is asked for."""
    verdict = "the base model fits" if 2 * weights <= free else "the base model may not fit"
    return f"{free / GIB:.1f} GiB, {verdict}"
