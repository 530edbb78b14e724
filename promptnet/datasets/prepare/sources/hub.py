"""Hugging Face data sets: from the Hub, or saved in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.datasets.prepare.sources.base import Columns, Entry, Raw, Refused, printable
from promptnet.datasets.prepare.sources.texts import as_text

if TYPE_CHECKING:
    from datasets import Dataset

_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


def is_saved_data_set(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, or holds parquet or arrow files, also one folder deeper."""
    if any((folder / name).is_file() for name in _SAVED):
        return True
    patterns = ("[!.]*.parquet", "[!.]*.arrow", "[!.]*/[!.]*.parquet")
    return any(next(folder.glob(pattern), None) for pattern in patterns)


@dataclass(frozen=True)
class HubSource:
    """The rows of one split.

    Args:
        data: with the image column undecoded.
        columns: which column is what.
        prefix: of the entries' names.
    """

    data: Dataset
    columns: Columns
    prefix: str

    @classmethod
    def opened(cls, name: str, columns: Columns, prefix: str) -> HubSource:
        """Load a data set and check that it has the columns.

        Raises:
            ValueError: it cannot be loaded, or lacks a split or column.
            ModuleNotFoundError: the library is not installed.
        """
        data = _loaded(name, columns.split)
        wanted = {"image": columns.image, "identity": _identity(columns), "caption": columns.caption}
        for what, column in wanted.items():
            if column is not None and column not in data.column_names:
                raise ValueError(
                    f"data set '{printable(name)}' has no column '{column}' for the {what}: choose of "
                    f"{', '.join(data.column_names)} (--{what}{'' if what == 'identity' else '-column'})"
                )
        return cls(_undecoded(data, columns.image), columns, prefix or f"{printable(name)}/")

    def entries(self) -> list[Entry]:
        """See `Source`."""
        where, caption = f"{self.prefix}{self.columns.split}", self.columns.caption
        return [Entry(f"{where}/{row}", row, caption=caption) for row in range(len(self.data))]

    def read(self, entry: Entry) -> Raw:
        """See `Source`."""
        try:
            row = self.data[entry.place]
        except Exception as error:  # the library raises anything
            raise Refused("unreadable", f"cannot be read ({type(error).__name__}: {error})") from error
        return Raw(_content(row[self.columns.image]), self._text(row, _identity(self.columns)), self._caption(row))

    def version(self) -> str:
        """See `Source`."""
        return self.data._fingerprint

    def _caption(self, row: dict[str, Any]) -> str | None:
        return self._text(row, self.columns.caption)

    def _text(self, row: dict[str, Any], column: str | None) -> str | None:
        """A value as text; of a class label its name."""
        value = None if column is None else row[column]
        if value is None:
            return None
        feature: Any = self.data.features[column or ""]
        if hasattr(feature, "int2str"):
            value = feature.int2str(value) if value >= 0 else None  # -1 is the library's "not known"
        return as_text(value, column or "", column or "")


def _identity(columns: Columns) -> str | None:
    if columns.identity in ("folder", "parent"):
        raise ValueError(f"identity={columns.identity!r} does not go with a data set: name a column, or none")
    return None if columns.identity == "none" else columns.identity


def _loaded(name: str, split: str) -> Dataset:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data sets need the library `datasets`: pip install 'promptnet[train]' ({error})"
        ) from error
    folder = Path(name)
    try:
        if any((folder / mark).is_file() for mark in _SAVED):
            data: Any = datasets.load_from_disk(name)
        else:
            data = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises anything
        what = (
            f"folder '{printable(name)}' is no data set"
            if folder.is_dir()
            else f"there is no folder and no data set '{name}'"
        )
        raise ValueError(f"{what} that can be loaded with split '{split}' ({type(error).__name__}: {error})") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ValueError(
                f"data set '{printable(name)}' has no split '{split}': choose of {', '.join(map(str, data))} (--split)"
            )
        data = data[split]
    return data


def _undecoded(data: Dataset, column: str) -> Dataset:
    """Images as their files' bytes: decoding is for the one guarded function alone."""
    import datasets

    try:
        return data.cast_column(column, datasets.Image(decode=False))
    except Exception as error:
        kind = data.features[column]
        raise ValueError(f"column '{column}' holds {kind}, not images (--image-column)") from error


def _content(value: Any) -> Path | bytes:
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise Refused("missing", "is a row without an image")
    if value["bytes"] is not None:
        return value["bytes"]
    return Path(value["path"])
