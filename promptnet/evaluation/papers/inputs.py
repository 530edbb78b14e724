"""What the user gives: prompts, people and images, checked before anything is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from promptnet.datasets.prepare.sources.base import IMAGE_ENDINGS
from promptnet.evaluation.harness.tasks import Person, Split, make_described_people, make_people
from promptnet.evaluation.identity import images_in
from promptnet.evaluation.papers.config import ConfigError
from promptnet.images.load import open_image
from promptnet.models.placeholders import find_placeholders


@dataclass(frozen=True)
class Reference:
    """A person to customise to.

    Args:
        name: of the file or folder.
        digest: of the images.
        load: returns the images.
    """

    name: str
    digest: str
    load: Callable[[], list[Image.Image]]


def read_prompts(source: str | Sequence[str]) -> list[str]:
    """Return prompts from a list, or from a text file: one a line, without empty lines and those that begin with #.

    Raises:
        ValueError: there is no such file, or no prompt.
    """
    if isinstance(source, str):
        if not Path(source).is_file():
            raise ConfigError(f"prompts '{source}' is no file: name a text file with a prompt a line, or give a list")
        lines = [line.strip() for line in Path(source).read_text("utf-8-sig").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
    else:
        found = [str(prompt) for prompt in source]
    if not found:
        raise ConfigError(f"prompts {source!r} hold no prompt")
    return found


def check_subject_prompts(prompts: Sequence[str]) -> None:
    """Check that each prompt names the subject.

    Raises:
        ValueError: one holds no S*, or another placeholder.
    """
    for prompt in prompts:
        if set(find_placeholders(prompt)) != {"S*"}:
            raise ConfigError(f"prompt {prompt!r} must hold S*, and no other placeholder: it stands for the person")


def check_plain_prompts(prompts: Sequence[str]) -> None:
    """Check that no prompt names a subject.

    Raises:
        ValueError: one does.
    """
    for prompt in prompts:
        if find_placeholders(prompt):
            raise ConfigError(f"prompt {prompt!r} holds a placeholder, and this table has no subjects: use plain words")


def find_people(source: str | Mapping[str, Any], size_px: int, seed: int) -> list[Reference]:
    """Return the people of a folder, each an image or a folder of images; or unseen avatars.

    Every image is opened once, so that a broken one is found at the start.

    Raises:
        ValueError: there is no such folder, nobody in it, or an image cannot be used.
    """
    if isinstance(source, Mapping):
        split, count = _avatars("references", source)
        return [_avatar(person, size_px) for person in make_people(split, count, 1, seed)]
    folder = Path(source)
    if not folder.is_dir():
        raise ConfigError(
            f"references '{folder}' is no folder: name one with an image, or a folder of images, a person"
        )
    found = [_person(path) for path in sorted(folder.iterdir()) if _is_person(path)]
    if not found:
        raise ConfigError(f"references '{folder}' holds no image: {', '.join(IMAGE_ENDINGS)}")
    return found


def _is_person(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in IMAGE_ENDINGS)


def _person(path: Path) -> Reference:
    paths = images_in(path)
    for each in paths:
        open_image(each)
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in paths)).hexdigest()
    return Reference(path.name, digest, lambda: [open_image(each) for each in paths])


def _avatar(person: Person, size_px: int) -> Reference:
    return Reference(f"avatar-{person.index:03d}", repr(person), lambda: [person.reference_image(size_px)])


def _avatars(name: str, source: Mapping[str, Any]) -> tuple[Split, int]:
    if set(source) != {"avatars", "people"} or source["avatars"] not in ("train", "validation", "test"):
        raise ConfigError(f"{name}: {dict(source)} must be a folder, or {{avatars: validation, people: 8}}")
    return source["avatars"], source["people"]


def captions(source: str | Sequence[str] | Mapping[str, Any], seed: int) -> list[str]:
    """Return prompts without subjects: from a file, a list, or the full captions of avatars.

    Raises:
        ValueError: there is no such file, no prompt, or one names a subject.
    """
    if isinstance(source, Mapping):
        split, count = _avatars("prompts", source)
        return [person.eval_prompts[0].prompt for person in make_described_people(split, count, 1, seed)]
    found = read_prompts(source)
    check_plain_prompts(found)
    return found


def check_images(name: str, folder: str) -> list[Path]:
    """Return the images of a folder, each opened once.

    Raises:
        ValueError: there is no such folder or no image in it, or one cannot be used.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"{name} '{folder}' is no folder: name one that holds images")
    found = images_in(Path(folder))
    for path in found:
        open_image(path)
    return found


def real_images(source: str | Mapping[str, Any], size_px: int, seed: int) -> Iterator[Image.Image]:
    """Yield real images, at their own size; avatars are rendered at the size given."""
    if isinstance(source, Mapping):
        split, count = _avatars("real", source)
        for person in make_described_people(split, count, 1, seed):
            yield person.true_images(size_px)[0]
        return
    for path in images_in(Path(source)):
        yield open_image(path)
