"""From images anywhere to a data set for training: `prepare_images` is `promptnet prepare` but for the printing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptnet.datasets.prepare.finish import Outcome, finish, percentiles
from promptnet.datasets.prepare.options import PrepareOptions
from promptnet.datasets.prepare.parts import Part, Refusal, read_record, split
from promptnet.datasets.prepare.report import REPORT, UNFINISHED, read_report
from promptnet.datasets.prepare.sources.base import Columns, Entry, Source, printable
from promptnet.datasets.prepare.sources.endings import split_ending
from promptnet.datasets.prepare.sources.names import LEFT_OUT
from promptnet.datasets.prepare.sources.registry import open_sources
from promptnet.datasets.prepare.worker_pool import Job, make_parts
from promptnet.images.face_detection import check_installed
from promptnet.io.atomic import write_whole

FORMAT_VERSION = 2  # 2: the plan knows sizes of files
_PLAN = "plan.json"
_LOCK = ".lock"
_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
Images prepared by `promptnet prepare`; what was left out, and why, is in report.json. Images of faces are biometric
data: keep this folder as private as the photographs themselves.
"""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A finished data set: its report, and whether this call had anything to do."""

    report: dict[str, Any]
    was_finished: bool


def prepare_images(
    names: Sequence[str],
    out: str | Path,
    options: PrepareOptions | None = None,
    columns: Columns | None = None,
    *,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> Prepared:
    """Prepare a data set, or go on with one that was cut off; the outcome is the same to the byte.

    The folder is for its owner's eyes alone (mode 0700, files 0600). Bad images are named in the report and stop
    nothing.

    Args:
        names: of the sources, see `open_sources`.
        out: the folder to make, or one that the same call has begun; its parent must exist.
        options: how images become rows.
        columns: what is called what in the sources.
        workers: processes.
        progress: is told how many images of how many are done.

    Raises:
        ValueError: an option or source that will not do; `out` holds something else; another process works on it.
        OSError: the disk is full. Repeating the call goes on from there.
        ModuleNotFoundError: a library of an extra is missing.
    """
    out, options, columns = Path(out), options or PrepareOptions(), columns or Columns()
    _check_tools(options, workers)
    _check_folder(out)
    _check_outside(out, names)
    sources = open_sources(names, columns)
    entries, skipped = _listed(sources)
    if not entries:
        but = f" but {len(skipped)} hidden or system files and folders" if skipped else ""
        raise ValueError(f"there is nothing in {', '.join(map(printable, names))}{but}")
    _check_columns(names, columns, [entry for _, entry in entries])
    plan = _plan(names, sources, columns, options, entries)
    with _told_of_full_disk(out), _locked(out):
        if _is_finished(out, plan):
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
            return Prepared(read_report(out), was_finished=True)
        _check_plan(out, plan)
        job = Job(sources, options, out / UNFINISHED)
        outcome = _work(out, job, split(entries, options.part_size), workers, progress)
        return Prepared(_close(out, plan, outcome, skipped), was_finished=False)


def _listed(sources: Sequence[Source]) -> tuple[list[tuple[int, Entry]], list[Refusal]]:
    """List what may be images, each with the number of its source; and apart from that what is left out by its name.

    What is left out is no part of the plan: systems make such files at any time, also while a preparation waits.
    """
    entries: list[tuple[int, Entry]] = []
    skipped: list[Refusal] = []
    for number, source in enumerate(sources):
        for entry in source.entries():
            if entry.refusal is not None and entry.refusal[0] in LEFT_OUT:
                skipped.append(Refusal(entry.name, *entry.refusal))
            else:
                entries.append((number, entry))
    return entries, skipped


def _check_tools(options: PrepareOptions, workers: int) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"data sets need pyarrow: pip install 'promptnet[train]' ({error})") from error
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    if options.detector != "none":
        check_installed()


def _check_folder(out: Path) -> None:
    if not out.parent.is_dir():
        raise ValueError(f"output folder '{out}' cannot be made: create '{out.parent}' first (mkdir -p '{out.parent}')")
    if out.exists() and not out.is_dir():
        raise ValueError(f"output '{out}' is a file: name a folder")
    inside = {path.name for path in out.iterdir()} - {_LOCK} if out.is_dir() else set()
    if inside and not inside & {UNFINISHED, REPORT}:
        raise ValueError(f"output folder '{out}' holds something else: name a new one")


def _check_outside(out: Path, names: Sequence[str]) -> None:
    """Refuse an output that its own source would contain: repeating the command would find it there."""
    for source in (Path(name) for name in names if Path(name).is_dir()):
        if out.resolve().is_relative_to(source.resolve()):
            raise ValueError(
                f"output folder '{out}' lies in the source '{printable(str(source))}', so it would become a part of "
                "what it is made from: name a folder outside"
            )


def _check_columns(names: Sequence[str], columns: Columns, entries: Sequence[Entry]) -> None:
    """Refuse a caption or identity that is asked for and that not one image has."""
    images = [entry for entry in entries if entry.refusal is None]
    asked = {"caption-column": (columns.caption, any(entry.caption for entry in images))}
    asked["identity"] = (columns.identity, any(entry.has_identity for entry in images))
    for option, (column, is_there) in asked.items():
        if images and column not in (None, "none") and not is_there:
            endings = Counter(f".{split_ending(entry.name)[1]}" for entry in entries)
            there = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(5))
            raise ValueError(
                f"--{option} {printable(column)} matches nothing: not one of {len(images)} images in "
                f"{', '.join(map(printable, names))} has a text of that ending beside it. What is there: {there}"
            )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One preparation a folder. The system takes a lock back when its process dies, however it dies."""
    out.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(out / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(f"another process prepares '{out}': wait for it, or name another folder") from error
    try:
        yield
    finally:  # the file stays: whoever has opened it meanwhile must find the lock that the next one takes
        os.close(descriptor)


@contextmanager
def _told_of_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"the disk of '{out}' is full: free some space and repeat the command, finished parts are kept"
        raise OSError(error.errno, message) from error


def _plan(
    names: Sequence[str],
    sources: Sequence[Source],
    columns: Columns,
    options: PrepareOptions,
    entries: Sequence[tuple[int, Entry]],
) -> dict[str, Any]:
    """What a data set is made of: two preparations of one plan give the same bytes."""
    digest = hashlib.sha256()
    for text in (*(source.version() for source in sources), *map(repr, entries)):
        digest.update(text.encode("utf-8", "backslashreplace") + b"\n")
    return {
        "version": FORMAT_VERSION,
        "sources": [printable(name) for name in names],
        "columns": asdict(columns),
        "options": options.record(),
        "num_pictures": len(entries),
        "entries": digest.hexdigest(),
    }


def _is_finished(out: Path, plan: dict[str, Any]) -> bool:
    if not (out / REPORT).is_file():
        return False
    _check_same(out, read_report(out)["plan"], plan)
    return True


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    """Begin, or make sure that what was begun is the same."""
    work = out / UNFINISHED
    work.mkdir(mode=0o700, exist_ok=True)
    if (work / _PLAN).is_file():
        _check_same(out, json.loads((work / _PLAN).read_text("utf-8")), plan)
    else:
        write_whole(work / _PLAN, json.dumps(plan, indent=1).encode())
    for part in work.glob(".*.part"):  # what a killed process was writing
        part.unlink(missing_ok=True)


def _check_same(out: Path, begun: dict[str, Any], plan: dict[str, Any]) -> None:
    changed = [
        f"{name} was {before[name]!r} and is {now.get(name)!r}"
        for before, now in ((begun["options"], plan["options"]), (begun["columns"], plan["columns"]), (begun, plan))
        for name in before
        if name not in ("options", "columns", "entries") and before[name] != now.get(name)
    ]
    if not changed and begun["entries"] != plan["entries"]:
        changed = ["the names or sizes of the files in the source have changed"]
    if changed:
        raise ValueError(
            f"'{out}' was prepared otherwise ({'; '.join(changed)}): name another folder, or delete this one"
        )


def _work(out: Path, job: Job, parts: list[Part], workers: int, progress: Progress) -> Outcome:
    open_parts = [part for part in parts if read_record(part, job.folder) is None]
    total = sum(len(part.entries) for part in parts)
    done = total - sum(len(part.entries) for part in open_parts)
    progress(done, total)

    def on_images(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    make_parts(job, open_parts, workers, on_images)
    return finish(parts, job.folder, out)


def _close(out: Path, plan: dict[str, Any], outcome: Outcome, skipped: Sequence[Refusal]) -> dict[str, Any]:
    """The card, then the report, then the parts go."""
    reasons = Counter(refusal.reason for refusal in outcome.refusals)
    report = {
        "plan": plan,
        "pictures": outcome.num_images,
        "accepted": outcome.num_accepted,
        "rows": sum(shard.num_rows for shard in outcome.shards),
        "identities": len(outcome.identities),
        "captions": outcome.num_captions,
        "rejected": dict(reasons.most_common()),
        "left_out": dict(Counter(each.reason for each in skipped).most_common()),
        "score": percentiles(outcome.scores),
        "sharpness": percentiles(outcome.sharpness),
        "face_px": percentiles(outcome.face_px),
        "shards": [asdict(shard) for shard in outcome.shards],
        "rejections": [asdict(refusal) for refusal in outcome.refusals],
        "skipped": [asdict(each) for each in skipped],
    }
    write_whole(out / "README.md", _CARD.encode())
    write_whole(out / REPORT, json.dumps(report, indent=1).encode())
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return report
