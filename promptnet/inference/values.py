"""Single values that callers give: accepted as users of diffusers expect, or refused in one line with the fix.

torch is imported where a value is torch's own, so that a command can check numbers before it loads anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def whole(name: str, value: Any, least: int) -> int:
    """A whole number, Python's or numpy's.

    Raises:
        ValueError: it is something else, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
    return int(value)


def real(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float | int:
    """A finite number, Python's or numpy's.

    Raises:
        ValueError: it is something else, or out of its range.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number.")
    if not least <= float(value) <= most:
        raise ValueError(f"{name}={value!r} must be between {least:g} and {most:g}.")
    return value if isinstance(value, (int, float)) else float(value)


def interval(name: str, value: Any) -> tuple[float, float]:
    """Two numbers, 0 <= start < end <= 1; a list, as files have it, is as good as a tuple.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{name}={value!r} must be two numbers, (start, end).")
    start, end = (float(real(name, one, 0, 1)) for one in value)
    if start >= end:
        raise ValueError(f"{name}={value!r} must begin before it ends.")
    return start, end


def generators(generator: Any, num_images: int | None = None) -> Any:
    """One generator, a list with one for each image, or None.

    Args:
        generator: as the caller gives it; a tuple is as good as a list.
        num_images: how many a list must have; None allows no list.

    Raises:
        ValueError: it is something else, or there are not as many as images.
    """
    import torch

    if generator is None or isinstance(generator, torch.Generator):
        return generator
    several = isinstance(generator, (list, tuple)) and all(isinstance(one, torch.Generator) for one in generator)
    if num_images is None or not several:
        lists = "" if num_images is None else ", or a list with one for each image"
        raise ValueError(
            f"generator={generator!r} must be a torch.Generator{lists}, such as torch.Generator().manual_seed(0)."
        )
    if len(generator) != num_images:
        raise ValueError(
            f"There are {len(generator)} generators for {num_images} images: give one for all, or one for each."
        )
    return list(generator)


def tensor(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape.

    Raises:
        ValueError: it is something else, or of another shape.
    """
    from torch import Tensor

    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor of shape {shape}, not a {type(value).__name__}.")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} have shape {tuple(value.shape)}, but this call needs {shape}.")
    return value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ": did you mean ...?" for a misspelt name, or nothing if no known one is close."""
    close = get_close_matches(word, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ""


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keyword arguments that do not exist.

    Args:
        what: takes them.
        given: names that no parameter has.
        known: names of the parameters.

    Raises:
        TypeError: there is one; names the closest that exists.
    """
    known = list(known)
    for name in given:
        raise TypeError(f"{what} has no argument {name!r}{did_you_mean(name, known)}")
