"""Folders, tar shards and Hugging Face data sets: what is in them, and what is refused by name."""

import json
import os
import pickle
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptnet.datasets.prepare.sources.base import Columns, Entry, Refused, Source, printable
from promptnet.datasets.prepare.sources.folder import FolderSource
from promptnet.datasets.prepare.sources.hub import HubSource
from promptnet.datasets.prepare.sources.registry import open_sources
from promptnet.datasets.prepare.sources.tar import ShardSource


def image(number: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def only(name: Path | str, **columns: Any) -> Source:
    (source,) = open_sources([str(name)], Columns(**columns))
    return source


def readable(source: Source) -> dict[str, tuple[str | None, str | None]]:
    """Name -> identity and caption of what can be read."""
    found = {}
    for entry in source.entries():
        if entry.refusal is None:
            raw = source.read(entry)
            assert isinstance(raw.content, bytes) or raw.content.is_file()
            found[entry.name] = (raw.identity, raw.caption)
    return found


def refused(source: Source) -> dict[str, str]:
    """Name -> reason, of what is known not to be readable."""
    return {entry.name: entry.refusal[0] for entry in source.entries() if entry.refusal}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain.png", "plain.png"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[2J", r"\x1b[2J"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("Größe 😀", "Größe 😀"),
        ("left\u202eto right", r"left\u202eto right"),
    ],
)
def test_names_are_one_printable_line(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(name).isprintable()


def test_a_refusal_crosses_processes() -> None:
    copy = pickle.loads(pickle.dumps(Refused("pickle", "is a pickle")))
    assert (type(copy), copy.reason, copy.problem) == (Refused, "pickle", "is a pickle")


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(["top.png", "anna/1.png", "anna/holiday/2.png", "ben/1.png"]):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(image(number))
    (tmp_path / "photos/anna/1.txt").write_text(" at the sea\n")
    (tmp_path / "photos/anna/alone.txt").write_text("to do")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("identity", "deep"), [(None, "anna"), ("folder", "anna"), ("parent", "holiday"), ("none", None)]
)
def test_identities_from_folders(photos: Path, identity: str | None, deep: str | None) -> None:
    found = readable(only(photos, identity=identity))
    assert found["top.png"][0] is None
    assert found["anna/holiday/2.png"][0] == deep
    assert found["ben/1.png"][0] == (None if identity == "none" else "ben")


def test_captions_lie_beside_images(photos: Path) -> None:
    found = readable(only(photos, caption="txt"))
    assert found["anna/1.png"] == ("anna", "at the sea")
    assert found["ben/1.png"] == ("ben", None)
    assert "anna/1.txt" not in found
    assert "anna/alone.txt" in found  # to be opened, and refused by name
    assert "anna/1.txt" in readable(only(photos))


def add_all(folder: Path, members: dict[str, bytes]) -> None:
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_entries_come_in_the_order_of_their_names(photos: Path) -> None:
    names = [entry.name for entry in only(photos).entries()]
    assert names == sorted(names)


def test_links_are_followed_but_not_in_circles(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/3.png").write_bytes(image(3))
    (photos / "carl").symlink_to(tmp_path / "elsewhere")
    (photos / "ben/up").symlink_to(photos)
    (photos / "ben/twice.png").symlink_to(photos / "ben/1.png")
    source = only(photos)
    assert readable(source)["carl/3.png"][0] == "carl"
    assert "ben/twice.png" in readable(source)
    assert refused(source) == {"ben/up": "link loop"}


def test_a_folder_with_the_name_of_a_image_is_a_folder(photos: Path) -> None:
    (photos / "dora.png").mkdir()
    assert refused(only(photos)) == {"dora.png": "folder"}
    (photos / "dora.png/1.png").write_bytes(image(9))
    assert readable(only(photos))["dora.png/1.png"][0] == "dora.png"


def test_a_folder_that_may_not_be_listed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def guarded(path: Path) -> Any:
        if Path(path).name == "ben":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert refused(only(photos)) == {"ben": "unreadable"}


def test_folders_have_no_columns(photos: Path) -> None:
    with pytest.raises(ValueError, match="identity='person' does not go with the folder"):
        only(photos, identity="person")


def test_several_sources_keep_their_names_apart(photos: Path) -> None:
    sources = open_sources([str(photos / "anna"), str(photos / "ben")], Columns())
    names = [entry.name for source in sources for entry in source.entries()]
    assert len(set(names)) == len(names)
    assert f"{photos}/ben/1.png" in names
    with pytest.raises(ValueError, match="named twice"):
        open_sources([str(photos)] * 2, Columns())


@pytest.mark.parametrize("name", ["missing/folder/x", "./missing", "missing.tar", "~/missing"])
def test_a_source_that_does_not_exist(name: str) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        only(name)


def test_a_name_that_is_neither_here_nor_on_the_hub() -> None:
    with pytest.raises(ValueError, match="there is no folder and no data set 'nobody/nothing'"):
        only("nobody/nothing")


def test_a_single_image_is_no_source(photos: Path) -> None:
    with pytest.raises(ValueError, match="is a file"):
        only(photos / "top.png")


# --- tar shards ---------------------------------------------------------------------------------------------------


def shard(path: Path, members: dict[str, bytes], special: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
        for info in special:
            archive.addfile(info)
    return path


def about(person: str) -> bytes:
    return json.dumps({"person": person, "more": {"age": 40}}).encode()


MEMBERS = {
    "a/001.png": image(1),
    "a/001.json": about("anna"),
    "a/001.cls": b"7",
    "a/001.txt": b"at the sea",
    "a/002.jpg": image(2),
    "a/002.json": about("ben"),
    "b/001.main.png": image(3),
}


def test_samples_of_a_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", MEMBERS)
    source = only(path, identity="json.person", caption="txt")
    assert isinstance(source, ShardSource)
    assert readable(source) == {
        "s.tar/a/001.png": ("anna", "at the sea"),
        "s.tar/a/002.jpg": ("ben", None),
        "s.tar/b/001.main.png": (None, None),
    }
    assert source.read(source.entries()[1]).content == MEMBERS["a/002.jpg"]
    assert readable(only(path, identity="cls"))["s.tar/a/001.png"][0] == "7"
    assert readable(only(path, identity="json.more.age"))["s.tar/a/001.png"][0] == "40"
    assert readable(only(path))["s.tar/a/001.png"] == (None, None)


def test_a_folder_of_shards_in_order(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        shard(tmp_path / f"{number}.tar", {f"{number}.png": image(number)})
    assert list(readable(only(tmp_path))) == ["0.tar/0.png", "1.tar/1.png", "2.tar/2.png"]


def test_a_folder_of_images_with_a_tar_among_them_is_a_folder(photos: Path) -> None:
    shard(photos / "backup.tar", {"1.png": image(1)})
    source = only(photos)
    assert isinstance(source, FolderSource)
    assert "backup.tar" in readable(source)


class Trap:
    """Would leave a mark if it were unpickled."""

    mark: Path

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_pickles_are_refused_by_name_and_never_run(tmp_path: Path) -> None:
    trap = Trap()
    trap.mark = tmp_path / "mark"
    data = pickle.dumps(trap)
    path = shard(tmp_path / "s.tar", MEMBERS | {"a/001.pth": data, "c.PKL": data, "a/002.feature.pickle": data})
    source = only(path, identity="cls")
    assert refused(source) == {
        "s.tar/a/001.pth": "pickle",
        "s.tar/c.PKL": "pickle",
        "s.tar/a/002.feature.pickle": "pickle",
    }
    assert len(readable(source)) == 3
    assert not trap.mark.exists()


def test_links_and_devices_in_a_shard(tmp_path: Path) -> None:
    link, device, folder = tarfile.TarInfo("l.png"), tarfile.TarInfo("d.png"), tarfile.TarInfo("folder")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    folder.type = tarfile.DIRTYPE
    source = only(shard(tmp_path / "s.tar", MEMBERS, (link, device, folder)))
    assert refused(source) == {"s.tar/l.png": "not a file", "s.tar/d.png": "not a file"}


def test_a_huge_member_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.bmp")
    member.size = 250 << 20
    path = tmp_path / "shard.tar"
    path.write_bytes(member.tobuf())
    os.truncate(path, 512 + member.size + 1024)  # sparse
    source = only(path)
    (entry,) = source.entries()
    with pytest.raises(Refused, match="more than 128 MiB"):
        source.read(entry)


def test_samples_without_a_image_or_with_two(tmp_path: Path) -> None:
    more = {"x.txt": b"text alone", "y.png": image(8), "y.jpg": image(9), "z\n.weights": b""}
    source = only(shard(tmp_path / "s.tar", MEMBERS | more))
    assert refused(source) == {
        "s.tar/x": "not an image",
        "s.tar/y": "several images",
        "s.tar/z\\n": "not an image",
    }


@pytest.mark.parametrize("how", ["cut", "overwritten", "empty", "no tar"])
def test_a_damaged_shard_is_named_and_the_rest_read(how: str, tmp_path: Path) -> None:
    path = shard(tmp_path / "1.tar", MEMBERS)
    shard(tmp_path / "2.tar", {"x.png": image(7)})
    data = bytearray(path.read_bytes())
    third = data.index(b"a/001.cls")
    if how == "cut":
        data = data[: third + 300]
    elif how == "overwritten":
        data[third : third + 512] = b"\xaa" * 512  # tarfile says nothing about this
    else:
        data = bytearray() if how == "empty" else bytearray(b"hello" * 999)
    path.write_bytes(data)
    source = only(tmp_path)
    assert refused(source) == {"1.tar": "damaged shard"}
    before = [] if how in ("empty", "no tar") else ["1.tar/a/001.png"]
    assert list(readable(source)) == [*before, "2.tar/x.png"]


def test_a_shard_without_its_end_marks_is_whole(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", MEMBERS)
    path.write_bytes(path.read_bytes().rstrip(b"\0").ljust(len(path.read_bytes()) // 512 * 512 - 8192, b"\0"))
    assert refused(only(path)) == {}


def test_json_that_is_none(tmp_path: Path) -> None:
    for data in (b"{", b"[1]", b'{"other": 1', b"[" * 100_000):
        source = only(shard(tmp_path / "s.tar", {"a.png": image(1), "a.json": data}), identity="json.person")
        with pytest.raises(Refused, match="has no field 'person'"):
            source.read(source.entries()[0])


def test_shards_that_cannot_be_reached_into(tmp_path: Path) -> None:
    (tmp_path / "s.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=r"is compressed.*unpack it first"):
        only(tmp_path / "s.tar.gz")
    with pytest.raises(ValueError, match="does not go with tar shards"):
        only(shard(tmp_path / "s.tar", MEMBERS), identity="folder")


# --- data sets ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_set() -> Any:
    import datasets

    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "who": datasets.ClassLabel(names=["anna", "ben"]),
            "number": datasets.Value("int64"),
            "text": datasets.Value("string"),
        }
    )
    rows = {
        "photo": [{"bytes": image(0), "path": None}, {"bytes": b"broken", "path": "x.png"}, None],
        "who": [1, 0, None],
        "number": [5, 6, 7],
        "text": ["at the sea", None, ""],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("saved", ["arrow", "splits", "parquet"])
def test_saved_data_sets(saved: str, data_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    if saved == "arrow":
        data_set.save_to_disk(str(folder))
    elif saved == "splits":
        datasets.DatasetDict({"train": data_set}).save_to_disk(str(folder))
    else:
        data_set.to_parquet(str(folder / "train.parquet"))
    source = only(folder, image="photo", identity="who", caption="text")
    assert isinstance(source, HubSource)
    first, second, third = source.entries()
    assert first.name == f"{folder}/train/0"
    raw = source.read(first)
    assert (raw.content, raw.identity, raw.caption) == (image(0), "ben", "at the sea")
    assert source.read(second).content == b"broken"  # decoding is not for the library
    with pytest.raises(Refused, match="row without an image"):
        source.read(third)
    with pytest.raises(Refused, match=r"cannot be read \(IndexError") as refusal:  # an error of the library's
        source.read(Entry("beyond", 9))
    assert refusal.value.reason == "unreadable"


def test_a_data_set_crosses_processes_and_has_a_version(data_set: Any, tmp_path: Path) -> None:
    data_set.save_to_disk(str(tmp_path / "set"))
    source = only(tmp_path / "set", image="photo", identity="number")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(copy.entries()[0]).identity == "5"
    assert only(tmp_path / "set", image="photo", identity="number").version() == source.version()


def test_columns_that_are_not_there(data_set: Any, tmp_path: Path) -> None:
    data_set.save_to_disk(str(tmp_path / "set"))
    for columns, said in [
        ({}, "has no column 'image' for the image: choose of photo, who"),
        ({"image": "photo", "identity": "person"}, r"no column 'person' for the identity.*\(--identity\)"),
        ({"image": "photo", "caption": "words"}, r"no column 'words'.*\(--caption-column\)"),
        ({"image": "photo", "identity": "folder"}, "does not go with a data set"),
        ({"image": "number"}, "column 'number' holds .*, not images"),
    ]:
        with pytest.raises(ValueError, match=said):
            only(tmp_path / "set", **columns)


def test_a_folder_that_only_looks_like_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="is no data set"):
        only(tmp_path)
