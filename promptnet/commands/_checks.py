"""Check the words of a command line before torch, diffusers or a model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from promptnet.inference.sampling.placeholders import check_negative_prompt, match_placeholders
from promptnet.inference.subject.class_word import check_class_word
from promptnet.inference.values import did_you_mean

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia")


def check_seed(seed: int) -> None:
    """Check that torch can take the seed.

    Raises:
        ValueError: it is longer than 64 bits.
    """
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed={seed} is too long: take a number of at most 19 digits")


def check_device(device: str) -> None:
    """Check the name of a device.

    Raises:
        ValueError: torch has no such kind of device.
    """
    kind = re.fullmatch(r"([a-z]+)(?::\d+)?", device)
    if kind is None or kind[1] not in DEVICES or (kind[1] == "auto" and device != "auto"):
        raise ValueError(f"device '{device}' is not known: use --device {', '.join(DEVICES[:3])} or cuda:0")


def check_counts(least: int = 1, /, **counts: int | None) -> None:
    """Check whole numbers; None is a default.

    Raises:
        ValueError: one is below `least`.
    """
    for name, count in counts.items():
        if count is not None and count < least:
            raise ValueError(f"{name}={count} must be at least {least}")


def check_numbers(least: float | None = None, most: float | None = None, /, **numbers: float | None) -> None:
    """Check numbers; None is a default.

    Raises:
        ValueError: one is not finite, or not between `least` and `most`.
    """
    for name, number in numbers.items():
        if number is None:
            continue
        if number - number != 0:
            raise ValueError(f"{name}={number} must be a finite number")
        if least is not None and number < least:
            raise ValueError(f"{name}={number} must be at least {least:g}")
        if most is not None and number > most:
            raise ValueError(f"{name}={number} must be at most {most:g}")


def check_files(option: str, paths: Iterable[Path | None]) -> None:
    """Check that the files of an option are there.

    Raises:
        FileNotFoundError: one is not.
        ValueError: one is a folder.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            kind = "image" if option in ("image", "mask") else "file"
            raise ValueError(f"--{option} '{path}' is a folder: name one {kind} in it")
        if not path.exists():
            raise FileNotFoundError(f"--{option} '{path}' does not exist: check its name")


def check_prompts(
    prompts: Sequence[str], num_subjects: int, negative_prompt: str | None = None, class_word: str | None = None
) -> None:
    """Check that prompts and subjects belong together.

    Raises:
        ValueError: a placeholder has no subject, a subject no placeholder, or the class word is none.
    """
    for prompt in prompts:
        if num_subjects:
            match_placeholders(prompt, [object() for _ in range(num_subjects)])
        else:
            check_plain(prompt)
    check_negative_prompt(negative_prompt or "")
    if class_word is not None:
        check_class_word(class_word)


def check_plain(prompt: str, give: str = "--subject FILE, made by promptnet customize") -> None:
    """Check that a prompt without a subject has no placeholder.

    Raises:
        ValueError: it has one; says what to give.
    """
    try:
        match_placeholders(prompt, [])
    except ValueError as error:
        text = str(error).partition(", but no subject is given")[0]
        raise ValueError(f"{text}, but no subject is given: give {give}, or write the prompt in plain words") from error


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Check a value of which only some are known.

    Raises:
        ValueError: it is none of them.
    """
    if value not in known:
        raise ValueError(f"--{option} '{value}' must be one of {', '.join(known)}{did_you_mean(value, known)}")


def check_choices(option: str, values: Sequence[str] | None, known: Sequence[str]) -> None:
    """Check several values of an option; None is its default.

    Raises:
        ValueError: there is none, or one is not known.
    """
    if values is not None and not values:
        raise ValueError(f"--{option} is empty: choose from {', '.join(known)}")
    for value in values or ():
        check_choice(option, value, known)
