"""`promptnet serve backup`: a copy of everything but the keys, which are kept apart and die with their users."""

import shutil
from pathlib import Path

from promptnet.io.atomic import new_folder
from promptnet.serve.database import copy_sqlite
from promptnet.serve.settings import Settings


def back_up(settings: Settings, out: Path) -> list[str]:
    """Copy database and files into a new folder while the service runs; the database first, whole as of one moment.

    Args:
        settings: of the service.
        out: the folder to make.

    Returns:
        What is not in it, and how to keep it.

    Raises:
        ValueError: the folder exists, or the service has no data yet.
    """
    if not (settings.data / "users").is_dir():
        raise ValueError(f"there is no service's data in '{settings.data}': name its folder with --data")
    notes = [f"the keys are not in it: copy '{settings.data / 'keys'}' to another place, and prune it there as here"]
    with new_folder(out) as folder:
        folder.chmod(0o700)
        if settings.database_url.startswith("sqlite:///"):
            copy_sqlite(Path(settings.database_url.removeprefix("sqlite:///")), folder / "service.sqlite")
            (folder / "service.sqlite").chmod(0o600)
        else:
            notes.append("the database is not in it: use pg_dump")
        shutil.copytree(settings.data / "users", folder / "users", ignore=_unfinished, ignore_dangling_symlinks=True)
    return notes


def _unfinished(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.startswith(".")}
