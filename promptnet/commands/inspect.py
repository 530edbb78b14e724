"""`promptnet inspect`: what a file of ours is, and whether it is intact."""

from __future__ import annotations

from pathlib import Path


def inspect(file: Path, /) -> None:
    """Say what a file or folder is (subject, edit card, export, checkpoint, image), and whether it is intact.

    Args:
        file: a file or folder that promptnet wrote; exit status 1 if its content was altered
    """
    from promptnet.export.inspection import inspect_file

    found = inspect_file(file)
    states = {True: "intact", False: "damaged or altered", None: "nothing in it tells whether it is intact"}
    print(f"{file}: {found.kind}, {states[found.is_intact]}")
    for name, value in found.about.items():
        print(f"  {name}: {value}")
    if found.is_intact is False:
        raise SystemExit(1)
