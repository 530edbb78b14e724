"""One rule for which files belong together, in folders and in tar shards: the same name but for the ending.

The ending is what follows the last full stop, in small letters: `22.05.PNG` is the png of `22.05`. Its text may be
called `22.05.txt` or `22.05.png.txt`. In a shard it may also be `22.txt`, because webdataset counts all that follows
the first full stop as the ending; a name of that kind belongs to one image alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def split_ending(name: str) -> tuple[str, str]:
    """Return a name without its ending, and the ending in small letters, without the full stop."""
    folder, slash, last = name.rpartition("/")
    stem, stop, ending = last.rpartition(".")
    return (folder + slash + stem, ending.lower()) if stop and stem else (name, "")


def ending_of(column: str | None) -> str:
    """Return the ending that a column's name stands for: "txt" for "txt", ".TXT"; "json" for "json.person"."""
    name = (column or "").lstrip(".")
    return "json" if name.startswith("json.") else name.lower()


def shorter_stems(stem: str) -> Iterator[str]:
    """Yield a name cut at each of its full stops, from the right: "a/1.b.c" gives "a/1.b" and "a/1"."""
    folder, slash, last = stem.rpartition("/")
    parts = last.split(".")
    for count in range(len(parts) - 1, 0, -1):
        if parts[0]:
            yield folder + slash + ".".join(parts[:count])


def texts_by_stem(names: Iterable[str], ending: str) -> dict[str, str]:
    """Return the files of one ending by their names without it; of `1.txt` and `1.TXT` the one that sorts first."""
    found: dict[str, str] = {}
    for name in sorted(names) if ending else ():
        if name.lower().endswith(f".{ending}"):
            found.setdefault(name[: -len(ending) - 1], name)
    return found


def text_beside(name: str, texts: dict[str, str]) -> str | None:
    """Return the text of an image, by its name without the ending or by its whole name; None where there is none."""
    for stem in (split_ending(name)[0], name):
        if texts.get(stem, name) != name:
            return texts[stem]
    return None
