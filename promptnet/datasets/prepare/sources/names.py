"""What the names of files say: which are nobody's images, and which files belong together."""

from __future__ import annotations

# Folders that systems make beside people's images: waste bins, thumbnails, snapshots, what archives carry along.
_SYSTEM_FOLDERS = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "__macosx",
        "__pycache__",
        "lost+found",
        "network trash folder",
        "recycled",
        "recycler",
        "system volume information",
        "temporary items",
    }
)
_SYSTEM_FILES = frozenset(
    {"desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "icon\r", "picasa.ini", "thumbs.db", "zbthumbnail.info"}
)

LEFT_OUT = ("hidden", "system")
"""Reasons of entries that are left out without being looked at, and counted apart."""


def left_out(name: str, *, is_folder: bool) -> tuple[str, str] | None:
    """Return why a file or folder of this name is nobody's image: one of `LEFT_OUT`, and a sentence. Else None.

    Hidden ones are left out whatever they hold: waste bins (`.Trash-1000`, `.trashed-1-x.jpg`), thumbnails, the second
    halves that macOS writes (`._x.jpg`), what editors keep (`.ipynb_checkpoints`).
    """
    if name.startswith(".") and name not in (".", ".."):
        return "hidden", f"is a hidden {'folder' if is_folder else 'file'}"
    if name.lower() in (_SYSTEM_FOLDERS if is_folder else _SYSTEM_FILES):
        return "system", f"is a {'folder' if is_folder else 'file'} of the system's own"
    return None


def left_out_of_path(path: str) -> tuple[str, str] | None:
    """Return why a member of an archive is nobody's image, by its name or that of a folder it lies in."""
    *folders, last = path.split("/")
    for folder in folders:
        if found := left_out(folder, is_folder=True):
            return found[0], f"lies in a folder that {found[1]}"
    return left_out(last, is_folder=False)
