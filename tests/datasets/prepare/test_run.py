"""`promptnet prepare` on 2,000 files of which 100 are bad, killed at any time, on a full disk."""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptnet.datasets.prepare import image as prepare_image
from promptnet.datasets.prepare import run as prepare
from promptnet.datasets.prepare.options import PrepareOptions
from promptnet.datasets.prepare.report import FEATURES, load_prepared, read_report, schema
from promptnet.datasets.prepare.run import Prepared, prepare_images
from promptnet.datasets.prepare.sources.base import Columns, Raw, printable
from promptnet.images.face_detection import Face
from promptnet.images.load import ImageError
from tests.datasets.image_sets import (
    BAD_FILES,
    BAD_PLACES,
    NUM_FILES,
    NUM_OF_A_BAD_KIND,
    NUM_PEOPLE,
    ImageSet,
    build_portraits,
)

CROPPED = PrepareOptions(detector="none", size_px=40, part_size=128)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "data").glob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def digest_of(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels_of(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(row["image"]["bytes"])))


# --- 2,000 files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def made(work: Path) -> ImageSet:
    (work / "portraits").mkdir()
    return build_portraits(work / "portraits")


@pytest.fixture(scope="module")
def prepared(work: Path, made: ImageSet) -> Prepared:
    return prepare_images([str(work / "portraits")], work / "out", CROPPED)


def shown(name: bytes) -> str:
    return printable(os.fsdecode(name))


def test_the_set_is_what_it_says(made: ImageSet) -> None:
    assert len(made.good) + len(made.bad) == NUM_FILES
    ways = len(BAD_FILES) + len(BAD_PLACES) - 1  # a cut at 50 % is one way for both formats
    assert (ways, len(made.bad)) == (20, 20 * NUM_OF_A_BAD_KIND)


def test_all_bad_files_are_named_with_their_reason(prepared: Prepared, made: ImageSet) -> None:
    named = {refusal["source"]: refusal["reason"] for refusal in prepared.report["rejections"]}
    assert named == {shown(name): reason for name, reason in made.bad.items()}
    assert len(prepared.report["rejections"]) == 100
    assert prepared.report["rejected"] == dict(Counter(made.bad.values()).most_common())


def test_no_message_holds_a_path_or_more_than_a_line(prepared: Prepared, work: Path) -> None:
    for refusal in prepared.report["rejections"]:
        assert str(work) not in refusal["problem"]
        assert (refusal["problem"] + refusal["source"]).isprintable()


def test_none_of_the_rest_is_lost_and_all_come_out_right(prepared: Prepared, made: ImageSet, work: Path) -> None:
    rows = {row["source"]: row for row in rows_of(work / "out")}
    assert sorted(rows) == sorted(map(shown, made.good))
    assert prepared.report["accepted"] == prepared.report["rows"] == len(rows) == 1900
    for name, (expected, tolerance) in made.good.items():
        pixels = pixels_of(rows[shown(name)])
        assert np.abs(pixels.astype(int) - expected).max() <= tolerance, name


def test_rows_say_where_they_are_from(prepared: Prepared, work: Path, made: ImageSet) -> None:
    rows = {row["source"]: row for row in rows_of(work / "out")}
    for name in list(made.good)[::97]:
        row = rows[shown(name)]
        with open(os.path.join(os.fsencode(work / "portraits"), name), "rb") as file:
            assert row["source_hash"] == hashlib.sha256(file.read()).hexdigest()
        assert row["identity"] == name.split(b"/")[0].decode()
        assert (row["landmarks"], row["crop"], row["score"], row["caption"]) == (None,) * 4
        assert row["sharpness"] > 0
    assert prepared.report["identities"] == NUM_PEOPLE
    assert len({row["pixel_hash"] for row in rows.values()}) == len(rows)


def test_datasets_opens_it_in_the_usual_way(prepared: Prepared, work: Path) -> None:
    import datasets

    stream = datasets.load_dataset(str(work / "out"), split="train", streaming=True)
    first = next(iter(stream))
    assert isinstance(first["image"], Image.Image)
    assert first["image"].size == (40, 40)
    assert list(first) == list(FEATURES)
    data = load_prepared(work / "out", cache_dir=str(work / "cache"))
    assert len(data) == 1900
    assert data[0]["source"] == first["source"]


def test_the_schema_is_what_datasets_itself_would_write() -> None:
    import datasets

    features = datasets.Features.from_dict(FEATURES)
    assert schema().equals(features.arrow_schema)
    assert json.loads(schema().metadata[b"huggingface"]) == json.loads(features.arrow_schema.metadata[b"huggingface"])


def test_everything_is_for_its_owner_alone(prepared: Prepared, work: Path) -> None:
    for path in [work / "out", *(work / "out").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert sorted(path.name for path in (work / "out").iterdir()) == [".lock", "README.md", "data", "report.json"]


def test_repeating_a_finished_command_changes_nothing(prepared: Prepared, work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (work / "out").rglob("*")}
    again = prepare_images([str(work / "portraits")], work / "out", CROPPED, workers=3)
    assert again.was_finished
    assert again.report == prepared.report
    assert {path: path.stat().st_mtime_ns for path in (work / "out").rglob("*")} == before


# --- cut off ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(work: Path) -> Path:
    """120 images of six people, of which 10 come twice."""
    folder = work / "few"
    rng = np.random.default_rng(3)
    for person in range(6):
        (folder / f"p{person}").mkdir(parents=True)
    for number in range(110):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number % 6}/{number:02d}.png")
        if number % 11 == 0:
            Image.fromarray(pixels).save(folder / f"p{(number + 1) % 6}/again-{number:02d}.bmp")
    return folder


SMALL = PrepareOptions(detector="none", size_px=32, part_size=16)


class Counted:
    """A function of `os` that says how often it was called, and may fail from some call on."""

    def __init__(self, name: str, limit: float = math.inf, failure: BaseException | None = None) -> None:
        self.real, self.calls, self.limit, self.failure = getattr(os, name), 0, limit, failure

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls > self.limit:
            assert self.failure is not None
            raise self.failure
        return self.real(*arguments)


@pytest.fixture(scope="module")
def num_calls(work: Path, few: Path) -> dict[str, int]:
    """How often an uninterrupted preparation of the few renames and syncs."""
    with pytest.MonkeyPatch.context() as patch:
        counted = {name: Counted(name) for name in ("replace", "fsync")}
        for name, function in counted.items():
            patch.setattr(os, name, function)
        prepare_images([str(few)], work / "whole", SMALL)
    return {name: function.calls for name, function in counted.items()}


@pytest.fixture(scope="module")
def uninterrupted(work: Path, num_calls: dict[str, int]) -> dict[str, str]:
    assert read_report(work / "whole")["rejected"] == {"duplicate": 10}
    return digest_of(work / "whole")


COMMAND = """
import sys
from pathlib import Path
from promptnet.datasets.prepare.run import prepare_images
from promptnet.datasets.prepare.options import PrepareOptions
if __name__ == "__main__":
    options = PrepareOptions(detector="none", size_px=32, part_size=16)
    prepare_images([sys.argv[1]], sys.argv[2], options, workers=int(sys.argv[3]))
"""


@pytest.mark.slow
def test_killed_at_any_time_and_repeated_is_the_same_to_the_byte(
    few: Path, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    out, script = tmp_path / "out", tmp_path / "command.py"
    script.write_text(COMMAND)
    words = [sys.executable, str(script), str(few), str(out)]
    for num_parts, workers in ((1, 1), (4, 2)):
        with subprocess.Popen([*words, str(workers)], start_new_session=True) as running:
            wait_for_parts(out, num_parts, running)
            running.send_signal(signal.SIGKILL)
        assert not (out / "report.json").exists()
        assert wait_until(lambda group=running.pid: not alive(group)), "a worker outlived the command"
    kept = {path: path.stat().st_mtime_ns for path in (out / ".preparing").glob("part-*.parquet")}
    assert len(kept) >= 4
    (out / ".preparing/.part-00007.parquet.x.part").write_bytes(b"half")
    subprocess.run([*words, "1"], check=True)
    assert digest_of(out) == uninterrupted


def wait_for_parts(out: Path, number: int, running: subprocess.Popen[bytes]) -> None:
    while len(list((out / ".preparing").glob("part-*.json"))) < number:
        assert running.poll() is None, "it was finished before it could be killed"
        time.sleep(0.002)


def wait_until(done: Any, timeout_s: float = 20) -> bool:
    start_s = time.monotonic()
    while not done() and time.monotonic() - start_s < timeout_s:
        time.sleep(0.05)
    return done()


def alive(group: int) -> bool:
    """Whether a process of this group does anything but wait to be buried."""
    for stats in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stats.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == group and state != "Z":
            return True
    return False


class Killed(BaseException):
    """As if the power had failed: nothing of ours catches it."""


CUT_OFF = [
    ("replace", 0),
    ("replace", 1),
    ("replace", 0.5),
    *(("replace", -back) for back in (6, 3, 2, 1)),
    ("fsync", -4),
]


@pytest.mark.parametrize(("name", "place"), CUT_OFF)
def test_cut_off_at_any_write(
    name: str,
    place: float,
    few: Path,
    uninterrupted: dict[str, str],
    num_calls: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever rename or sync is the last one, what is there is whole, and repeating gives the same bytes."""
    total = num_calls[name]
    limit = place * total if isinstance(place, float) else place % total
    with monkeypatch.context() as patch:
        patch.setattr(os, name, Counted(name, limit, Killed()))
        with pytest.raises(Killed):
            prepare_images([str(few)], tmp_path / "out", SMALL)
    for path in (tmp_path / "out").rglob("[!.]*.parquet"):
        pq.ParquetFile(path).read()
    prepare_images([str(few)], tmp_path / "out", SMALL)
    assert digest_of(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("share", [0, 0.3, 0.8, 0.97])
def test_a_full_disk_loses_nothing(
    share: float,
    few: Path,
    uninterrupted: dict[str, str],
    num_calls: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, full = tmp_path / "out", OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Counted("fsync", 2 * round(share * num_calls["fsync"] / 2), full))
        with pytest.raises(OSError, match="is full: free some space and repeat the command"):
            prepare_images([str(few)], out, SMALL)
    num_finished = len(list((out / ".preparing").glob("part-*.json")))
    assert num_finished == 8 or share < 0.8
    seen: list[tuple[int, int]] = []
    prepare_images([str(few)], out, SMALL, progress=lambda done, total: seen.append((done, total)))
    assert (seen[0], seen[-1]) == ((min(16 * num_finished, 120), 120), (120, 120))
    assert digest_of(out) == uninterrupted


def test_a_damaged_part_is_made_again(
    few: Path, uninterrupted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "finish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            prepare_images([str(few)], out, SMALL)
    parts = out / ".preparing"
    (parts / "part-00000.parquet").write_bytes(b"cut")
    (parts / "part-00001.json").write_text("{")
    (parts / "part-00002.parquet").unlink()
    prepare_images([str(few)], out, SMALL)
    assert digest_of(out) == uninterrupted


def test_a_file_system_without_links(
    few: Path, uninterrupted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", denied)
    prepare_images([str(few)], tmp_path / "out", SMALL)
    assert digest_of(tmp_path / "out") == uninterrupted


# --- duplicates ---------------------------------------------------------------------------------------------------


def test_the_first_of_equal_images_stays(few: Path, work: Path, uninterrupted: dict[str, str]) -> None:
    rows = rows_of(work / "whole")
    assert len({row["pixel_hash"] for row in rows}) == len(rows) == 110
    problems = {refusal["source"]: refusal["problem"] for refusal in read_report(work / "whole")["rejections"]}
    # p0 comes before p1, and a name with "again" after one with a number
    assert problems["p1/again-00.bmp"] == "has the same pixels as 'p0/00.png'"
    assert problems["p5/77.png"] == "has the same pixels as 'p0/again-77.bmp'"


def test_the_same_file_twice_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "in" / name)
    report = prepare_images([str(tmp_path / "in")], tmp_path / "out", CROPPED).report
    assert [refusal["problem"] for refusal in report["rejections"]] == ["has the same file as 'a.png'"]


# --- left out -----------------------------------------------------------------------------------------------------


def test_what_is_left_out_by_its_name_is_counted_and_no_part_of_the_plan(few: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(few / "p0", source / "anna")
    for name in (".Trash-1000/files/1.png", "@eaDir/1.png"):
        (source / name).parent.mkdir(parents=True)
        shutil.copy(next((few / "p1").iterdir()), source / name)
    report = prepare_images([str(source)], out, SMALL).report
    assert report["left_out"] == {"hidden": 1, "system": 1}
    assert [each["source"] for each in report["skipped"]] == [".Trash-1000", "@eaDir"]
    assert {row["identity"] for row in rows_of(out)} == {"anna"}
    assert report["pictures"] == len(list((few / "p0").iterdir()))
    (source / ".DS_Store").touch()  # a file browser has looked at the folder meanwhile
    assert prepare_images([str(source)], out, SMALL).was_finished
    (tmp_path / "hidden/.git").mkdir(parents=True)
    with pytest.raises(ValueError, match="but 1 hidden or system"):
        prepare_images([str(tmp_path / "hidden")], tmp_path / "none", SMALL)


def write_all(folder: Path, names: dict[str, bytes]) -> Path:
    """Texts as they are, and for names of images one that no other has."""
    for number, (name, data) in enumerate(names.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.new("RGB", (32, 32), (number, 9, 9)).save(folder / name)
        else:
            (folder / name).write_bytes(data)
    return folder


def test_a_caption_or_identity_that_nothing_has_is_refused(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "in", {"a/1.png": b"", "a/2.png": b"", "a/1.caption": b"a hat", "b.txt": b"alone"})
    said = r"--caption-column txt matches nothing: not one of 4 .* What is there: 2 \.png, 1 \.caption, 1 \.txt"
    with pytest.raises(ValueError, match=said):
        prepare_images([str(folder)], tmp_path / "out", SMALL, Columns(caption="txt"))
    assert not (tmp_path / "out").exists()
    report = prepare_images([str(folder)], tmp_path / "out", SMALL, Columns(caption="caption")).report
    assert (report["rows"], report["captions"]) == (2, 1)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(folder / "a", "a")
    for columns in (Columns(identity="cls"), Columns(identity="json.person"), Columns(caption="json.text")):
        with pytest.raises(ValueError, match="matches nothing"):
            prepare_images([str(tmp_path / "s.tar")], tmp_path / "none", SMALL, columns)


def test_one_source_of_several_may_lack_captions(tmp_path: Path) -> None:
    names = [str(write_all(tmp_path / "in", {"1.png": b"", "2.png": b"", "2.txt": b"a hat"}))]
    names.append(str(write_all(tmp_path / "other", {"1.png": b"", "3.png": b"", "4.png": b"", "5.png": b""})))
    assert prepare_images(names, tmp_path / "out", SMALL, Columns(caption="txt")).report["captions"] == 1


@pytest.mark.parametrize("out", ["faces", "anna/faces", "anna/../faces", "link/faces"])
def test_an_output_in_its_own_source_is_refused(out: str, tmp_path: Path) -> None:
    source = write_all(tmp_path / "photos", {"anna/1.png": b""})
    (source / "link").symlink_to(source / "anna")
    with pytest.raises(ValueError, match=r"lies in the source '.*photos'.*name a folder outside"):
        prepare_images([str(source)], source / out, SMALL)
    assert not (source / "faces").exists()
    assert not (source / "anna/faces").exists()
    (tmp_path / "into").symlink_to(source / "anna")
    with pytest.raises(ValueError, match="lies in the source"):
        prepare_images([str(source)], tmp_path / "into/faces", SMALL)
    assert prepare_images([str(source)], tmp_path / "photos-faces", SMALL).report["rows"] == 1


# --- refusals -----------------------------------------------------------------------------------------------------


def test_other_options_or_images_are_not_mixed_in(few: Path, uninterrupted: dict[str, str], work: Path) -> None:
    with pytest.raises(ValueError, match=r"prepared otherwise \(size_px was 32 and is 48\): name another folder"):
        prepare_images([str(few)], work / "whole", PrepareOptions(detector="none", size_px=48, part_size=16))
    with pytest.raises(ValueError, match="identity was None and is 'none'"):
        prepare_images([str(few)], work / "whole", SMALL, Columns(identity="none"))
    extra = few / "p0/new.png"
    extra.write_bytes(b"")
    try:
        with pytest.raises(ValueError, match="num_pictures was 120 and is 121"):
            prepare_images([str(few)], work / "whole", SMALL)
        extra.unlink()
        os.rename(few / "p0/00.png", extra)
        with pytest.raises(ValueError, match="names or sizes of the files in the source have changed"):
            prepare_images([str(few)], work / "whole", SMALL)
        content = extra.read_bytes()
        os.rename(extra, few / "p0/00.png")
        extra = few / "p0/00.png"
        extra.write_bytes(content + b"\0")
        with pytest.raises(ValueError, match="names or sizes of the files in the source have changed"):
            prepare_images([str(few)], work / "whole", SMALL)
        extra.write_bytes(content)
    finally:
        os.rename(extra, few / "p0/00.png")
    assert digest_of(work / "whole") == uninterrupted


def test_an_edited_caption_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "in/a.png")
    (tmp_path / "in/a.txt").write_text("a red square")
    prepare_images([str(tmp_path / "in")], tmp_path / "out", SMALL, Columns(caption="txt"))
    (tmp_path / "in/a.txt").write_text("a square")
    with pytest.raises(ValueError, match="names or sizes of the files in the source have changed"):
        prepare_images([str(tmp_path / "in")], tmp_path / "out", SMALL, Columns(caption="txt"))


def test_folders_that_will_not_do(few: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    (tmp_path / "nothing").mkdir()
    for out, said in {"missing/out": "create", "file": "is a file", "full": "holds something else"}.items():
        with pytest.raises(ValueError, match=said):
            prepare_images([str(few)], tmp_path / out, SMALL)
    with pytest.raises(ValueError, match="there is nothing in"):
        prepare_images([str(tmp_path / "nothing")], tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match="does not exist"):
        prepare_images([str(tmp_path / "nobody")], tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match="workers=0"):
        prepare_images([str(few)], tmp_path / "out", SMALL, workers=0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine.txt", "nothing"]


def test_whoever_waits_has_the_lock_that_the_next_one_takes(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_images([str(few)], out, SMALL)
    with open(out / ".lock") as waiting:  # opened while the first was at work
        prepare_images([str(few)], out, SMALL)
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ValueError, match="another process prepares"):
            prepare_images([str(few)], out, SMALL)


def test_a_file_is_read_once_and_may_then_vanish(few: Path) -> None:
    path = next(path for path in few.rglob("*") if path.is_file())
    content = path.read_bytes()

    def vanish(image: Image.Image) -> list[Face]:
        path.unlink()
        points = ((12.0, 14.0), (24.0, 14.0), (18.0, 20.0), (13.0, 26.0), (23.0, 26.0))
        return [Face((4.0, 4.0, 28.0, 28.0), points, 0.99)]

    options = PrepareOptions(size_px=16, min_face_px=16, margin=0.0)
    try:
        (row,) = prepare_image.rows_of(Raw(path), path.name, options, vanish)
        assert not path.exists()
        assert row["source_hash"] == hashlib.sha256(content).hexdigest()
        with pytest.raises(ImageError, match="does not exist"):
            prepare_image.rows_of(Raw(path), path.name, options, None)
    finally:
        path.write_bytes(content)


def test_one_preparation_a_folder(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with prepare._locked(out), pytest.raises(ValueError, match="another process prepares"):
        prepare_images([str(few)], out, SMALL)
    assert prepare_images([str(few)], out, SMALL).report["rows"] == 110


@pytest.mark.parametrize(
    "options",
    [{"margin": -0.1}, {"size_px": 8}, {"min_score": 1.5}, {"min_inside": -1}, {"part_size": 0}, {"min_face_px": 0}],
)
def test_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* must be within"):
        PrepareOptions(**options)


def test_keeping_the_aspect_is_not_for_faces() -> None:
    with pytest.raises(ValueError, match="keep_aspect goes with detector none"):
        PrepareOptions(keep_aspect=True)


def test_a_set_that_is_not_whole_is_not_loaded(few: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished data set"):
        read_report(tmp_path)
    prepare_images([str(few)], tmp_path / "out", SMALL)
    shard = next((tmp_path / "out/data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is missing or cut short"):
        load_prepared(tmp_path / "out")
