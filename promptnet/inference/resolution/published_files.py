"""Names of the published settings, read without importing anything heavy."""

from importlib import resources
from pathlib import Path
from typing import Any


def published_folder() -> Any:
    """Return the folder of the settings that come with the package."""
    return resources.files("promptnet.inference.resolution") / "published"


def published_names() -> list[str]:
    """The published settings that come with the package, such as "sd21-2048x2048" (width x height)."""
    return sorted(path.name.removesuffix(".yaml") for path in published_folder().iterdir() if path.name.endswith("l"))


def check_published(name: str) -> None:
    """Refuse a name of published settings that do not exist.

    Raises:
        ValueError: lists those that do.
    """
    if name not in published_names():
        raise ValueError(f"There are no published settings {name!r}: there are {', '.join(published_names())}.")


def check_resolution(source: str) -> None:
    """Refuse what is neither "auto", "off", published settings nor a file.

    Raises:
        ValueError: says what there is.
    """
    if source in ("auto", "off"):
        return
    if source.startswith("published:"):
        check_published(source.removeprefix("published:"))
    elif not Path(source).is_file():
        raise ValueError(
            f"settings={source!r} is none of 'auto', 'published:...' and a YAML file that exists. Published are: "
            f"{', '.join(published_names())}."
        )
