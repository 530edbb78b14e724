"""How an image was made, in the image file: a PNG text that `promptnet generate --like` reads again.

It holds words and numbers, never the subject: of subject files and edit cards only hashes are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.io.atomic import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "promptnet"
_KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative_prompt": (str, type(None)),
    "class_word": (str, type(None)),
    "seed": (int,),
    "size": (str,),
    "resolution": (str,),
    "scheduler": (str,),
    "base": (str,),
    "config": (dict,),
    "subjects": (list,),
}


def versions() -> dict[str, str]:
    """Return the versions that decide what an image looks like."""
    from importlib.metadata import version

    return {name: version(name) for name in ("promptnet", "diffusers", "torch")}


def without_folders(name: str) -> str:
    """Return the name of a file or folder, without the folders above it if it is absolute: they may name a person."""
    return Path(name).name if Path(name).is_absolute() or name.startswith("~") else name


def save_image(path: Path, image: Image, record: Mapping[str, Any] | None) -> None:
    """Write an image atomically, in PNG files with a record of how it was made.

    Args:
        path: of the file.
        image: to write.
        record: None writes none.
    """
    options: dict[str, Any] = {}
    if record is not None and path.suffix.lower() == ".png":
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(KEY, json.dumps(dict(record), ensure_ascii=False))
    write_whole(path, (lambda part: image.save(part, **options)) if options else image.save, public=True)


def read_record(path: Path) -> dict[str, Any]:
    """Return the record in an image that `promptnet generate` wrote.

    Raises:
        ValueError: the file is no PNG image, or holds none that can be read.
    """
    from promptnet.images.load import open_image

    open_image(path)  # what comes from outside is checked like any image
    from PIL import Image

    with Image.open(path) as image:
        text = getattr(image, "text", {}).get(KEY)
    if text is None:
        raise ValueError(
            f"--like '{path}' holds no record of how it was made: give a PNG that promptnet generate wrote "
            "without --no-metadata"
        )
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict) or any(not isinstance(record.get(name), kind) for name, kind in _KINDS.items()):
        raise ValueError(
            f"--like '{path}' holds a record that cannot be read: it was altered, or is of another version"
        )
    return record
