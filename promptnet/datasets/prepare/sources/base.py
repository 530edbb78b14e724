"""Where images come from: a folder, webdataset shards, a Hugging Face data set. Each is a list of entries to read.

Nothing from a source is executed: no pickles, no loading scripts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from promptnet.datasets.prepare.sources.names import LEFT_OUT
from promptnet.images import load as opening
from promptnet.images.load import ImageError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# Why an entry is refused, beside what can be wrong with any image (promptnet.images.load.REASONS).
REASONS = (
    *LEFT_OUT,
    "no face",
    "several faces",
    "face too small",
    "cut off",
    "blurred",
    "detector failed",
    "duplicate",
    "pickle",
    "several images",
    "damaged shard",
    "bad text",
)


class Refused(ImageError):
    """An entry that cannot become an image of the data set; `reason` in a word or two, `problem` in a sentence."""

    def __init__(self, reason: str, problem: str) -> None:
        assert reason in (*REASONS, *opening.REASONS), reason
        super().__init__(problem, reason, problem)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.problem)


@dataclass(frozen=True)
class Entry:
    """One thing in a source that is, or should be, an image.

    Attributes:
        name: of it in the source, one printable line.
        place: what its source needs in order to read it; None if listing has shown that it cannot be read.
        refusal: then the reason and the problem.
        num_bytes: of the image's file and of its caption's, where these are files of their own. A preparation that
            goes on tells from them that files were replaced.
        caption: the file or member that its caption is in; None where there is none.
        has_identity: whether the source says who it is, where that is asked for.
    """

    name: str
    place: Any = None
    refusal: tuple[str, str] | None = None
    num_bytes: tuple[int, ...] = ()
    # Not in the representation, which plans of earlier versions are compared by.
    caption: str | None = field(default=None, repr=False)
    has_identity: bool = field(default=True, repr=False)


@dataclass(frozen=True)
class Raw:
    """An entry as its source has it.

    Attributes:
        content: the image's file, or the bytes of one.
        identity: who is in it, if that is known.
        caption: text about it, if there is any.
    """

    content: Path | bytes = field(repr=False)
    identity: str | None = None
    caption: str | None = field(default=None, repr=False)


class Source(Protocol):
    """A place that images come from. It can be sent to another process."""

    def entries(self) -> list[Entry]:
        """Everything in it, always in the same order."""
        ...

    def read(self, entry: Entry) -> Raw:
        """One entry of this source.

        Raises:
            ImageError: it cannot be read.
        """
        ...

    def version(self) -> str:
        """Something that changes when a source of the same entries is another one."""
        ...


@dataclass(frozen=True)
class Columns:
    """What is called what in a source; None where it is not given.

    Args:
        identity: "folder" (the sub-folder of the source), "parent" (the folder that the image lies in), "none", or
            the name of a column. None: "folder" for a folder of images, else "none".
        image: the column with the image (Hugging Face data sets).
        caption: the column with a text.
        split: of a Hugging Face data set.
    """

    identity: str | None = None
    image: str = "image"
    caption: str | None = None
    split: str = "train"


def printable(name: str) -> str:
    """Any file name as one line of plain Unicode: odd bytes and control characters as escapes."""
    whole = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in whole)
