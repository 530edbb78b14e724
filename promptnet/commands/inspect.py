"""`promptnet inspect`: what a file of ours is, and whether it is intact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from promptnet.export.errors import ExportError

if TYPE_CHECKING:
    from promptnet.export.inspection import Found

IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def inspect(file: Path, /) -> None:
    """Say what a file or folder is (subject, edit card, export, checkpoint, image), and whether it is intact.

    Args:
        file: a file or folder that promptnet wrote, such as an image with its record or content credentials; exit
            status 1 if its content was altered
    """
    if not file.exists():
        raise FileNotFoundError(f"'{file}' does not exist: check its name")
    from promptnet.export.inspection import inspect_file

    found = inspect_image(file) if file.suffix.lower() in IMAGES and file.is_file() else inspect_file(file)
    states = {True: "intact", False: "damaged or altered", None: "nothing in it tells whether it is intact"}
    print(f"{file}: {found.kind}, {states[found.is_intact]}")
    for name, value in found.about.items():
        print(f"  {name}: {value}")
    if found.is_intact is False:
        raise SystemExit(1)


def inspect_image(file: Path) -> Found:
    """Read an image's record of how it was made, and its content credentials.

    Credentials are a signature over the whole image: where there are some, they decide whether it is intact.

    Raises:
        ExportError: it has neither.
    """
    from promptnet.export.inspection import Found, inspect_file

    signed = read_credentials(file)
    try:
        found = inspect_file(file)
    except ExportError:
        if not signed.about:
            raise
        return signed
    is_intact = found.is_intact if signed.is_intact is None else found.is_intact and signed.is_intact
    return Found(found.kind, is_intact, {**found.about, **signed.about})


def read_credentials(file: Path) -> Found:
    """Read an image's content credentials; nothing is said of an image without any."""
    from promptnet.export.inspection import Found

    try:
        from promptnet.serve.provenance import read_credentials as read

        found = read(file)
    except ModuleNotFoundError:
        return Found("image", None, {})
    except ValueError as error:
        return Found("image", False, {"content credentials": f"broken: {error}"})
    if found is None:
        return Found("image", None, {})
    about = {
        "content credentials": found.state,
        "made by": found.made_by or "unknown",
        "signed by": found.issuer or "unknown",
        "from a generative model": "yes" if found.generated else "not said",
    }
    return Found("image", found.state in ("Valid", "Trusted"), about)
