"""Names and texts in folders and tar shards: what is left out, what belongs together, what a caption says."""

import json
from pathlib import Path
from typing import Any

import pytest

from promptnet.datasets.prepare.sources.base import Refused
from tests.datasets.prepare.sources.test_sources import (
    MEMBERS,
    about,
    add_all,
    image,
    only,
    photos,
    readable,
    refused,
    shard,
)

__all__ = ["photos"]  # a fixture


NAMES = ["22.05", "22.05.1 final", "22", "IMG 0001.copy", "v1.2.3", "naïve.été"]


@pytest.mark.parametrize("ending", ["txt", ".TXT", "caption"])
@pytest.mark.parametrize("text_of", ["{}.{}", "{}.png.{}"])
def test_names_with_full_stops_keep_their_captions(ending: str, text_of: str, tmp_path: Path) -> None:
    """One rule in folders and shards, whichever name the text takes and in whatever letters its ending is."""
    members = {}
    for number, name in enumerate(NAMES):
        spelled = ending.lstrip(".") if number % 2 else ending.lstrip(".").upper()
        members |= {f"a/{name}.{'PNG' if number % 2 else 'png'}": image(number)}
        members |= {f"a/{text_of.format(name, spelled)}": name.encode()}
    if text_of == "{}.png.{}":
        members = {name.replace(".PNG", ".png"): data for name, data in members.items()}
    add_all(tmp_path / "in", members)
    found = readable(only(tmp_path / "in", caption=ending))
    assert {Path(name).stem: caption for name, (_, caption) in found.items()} == {name: name for name in NAMES}


def test_a_image_with_the_ending_of_captions_is_a_image(photos: Path) -> None:
    add_all(photos, {"carl/1.txt": image(5)})
    assert readable(only(photos, caption="txt"))["carl/1.txt"] == ("carl", None)


TEXTS: dict[str, tuple[bytes, str | None]] = {
    "plain": (b"a red hat", "a red hat"),
    "utf-8": ("café, Größe".encode(), "café, Größe"),
    "utf-8 with a mark": ("café".encode("utf-8-sig"), "café"),
    "utf-16": ("café".encode("utf-16"), "café"),
    "utf-16, big end first": (b"\xfe\xff" + "café".encode("utf-16-be"), "café"),
    "utf-32": ("café".encode("utf-32"), "café"),
    "lines of windows": (b"a red hat,\r\nat the sea\r\n", "a red hat, at the sea"),
    "tabs and ends": (b"\t a  red\that \n\n", "a red hat"),
    "nothing": (b"", None),
    "blank": (b" \r\n", None),
    "a mark alone": (b"\xef\xbb\xbf", None),
}


SPOILT: dict[str, tuple[bytes, str]] = {
    "latin-1": ("café".encode("latin-1"), r"is not UTF-8 \(byte 0xe9 at place 3\): save it as UTF-8"),
    "cyrillic": ("шляпа".encode("cp1251"), "is not UTF-8"),
    "japanese": ("帽子".encode("shift-jis"), "is not UTF-8"),
    "utf-16 without a mark": ("a hat".encode("utf-16-le"), "null bytes"),
    "odd utf-16": (b"\xff\xfea", "is not UTF-16-LE"),
    "spoilt before": ("caf\ufffd".encode(), "lost letters"),
}


@pytest.mark.parametrize("data", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("kind", ["folder", "shard", "identity", "json"])
def test_texts_are_decoded(kind: str, data: tuple[bytes, str | None], tmp_path: Path) -> None:
    content, expected = data
    members = {"1.png": image(1), "1.txt": content}
    if kind == "folder":
        add_all(tmp_path / "in", members)
        assert readable(only(tmp_path / "in", caption="txt")) == {"1.png": (None, expected)}
    elif kind == "json":
        encoding = {b"\xff\xfe": "utf-16", b"\xef\xbb": "utf-8-sig"}.get(content[:2], "utf-8")
        members["1.json"] = json.dumps({"said": f" {expected or ''}\r\n"}, ensure_ascii=False).encode(encoding)
        found = readable(only(shard(tmp_path / "s.tar", members), caption="json.said"))
        assert found == {"s.tar/1.png": (None, expected)}
    else:
        column = "caption" if kind == "shard" else "identity"
        found = readable(only(shard(tmp_path / "s.tar", members), **{column: "txt"}))
        assert found["s.tar/1.png"] == ((None, expected) if kind == "shard" else (expected, None))


@pytest.mark.parametrize("data", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("place", ["folder", "shard"])
def test_texts_that_nobody_can_read_are_named_themselves(place: str, data: tuple[bytes, str], tmp_path: Path) -> None:
    members = {"a/1.png": image(1), "a/1.txt": data[0]}
    add_all(tmp_path / "in", members)
    source = only(tmp_path / "in" if place == "folder" else shard(tmp_path / "s.tar", members), caption="txt")
    with pytest.raises(Refused, match=rf"comes with the text 'a/1\.txt', which .*{data[1]}") as refusal:
        source.read(source.entries()[0])
    assert refusal.value.reason == "bad text"


def test_texts_that_are_no_files_are_named_themselves(photos: Path) -> None:
    (photos / "ben/1.txt").symlink_to("nobody.txt")
    (photos / "top.txt").write_bytes(b"x" * 70_000)
    source = only(photos, caption="txt")
    entries = {entry.name: entry for entry in source.entries()}
    for name, said in {
        "ben/1.png": "text 'ben/1.txt', which does not exist",
        "top.png": "'top.txt', which has more",
    }.items():
        with pytest.raises(Refused, match=said) as refusal:
            source.read(entries[name])
        assert refusal.value.reason == "bad text"


@pytest.mark.parametrize("value", [["a", "b"], {"en": "a"}])
def test_a_list_is_no_caption(value: Any, tmp_path: Path) -> None:
    members = {"1.png": image(1), "1.json": json.dumps({"said": value}).encode()}
    source = only(shard(tmp_path / "s.tar", members), caption="json.said")
    with pytest.raises(Refused, match="in 'said', not one text"):
        source.read(source.entries()[0])


HIDDEN = [
    ".ipynb_checkpoints/1-checkpoint.png",
    ".Trash-1000/files/deleted.png",
    ".thumbnails/normal/1.png",
    "anna/.picasaoriginals/1.png",
    "anna/._1.png",
    "anna/.trashed-1700000000-1.png",
    "anna/.DS_Store",
]


SYSTEM = [
    "@eaDir/1.png/SYNOPHOTO_THUMB_M.png",
    "anna/@eaDir/1.png",
    "#recycle/old.png",
    "__MACOSX/anna/1.png",
    "$RECYCLE.BIN/$R1.png",
    "System Volume Information/x.png",
    "lost+found/1.png",
    "anna/Thumbs.db",
    "ben/desktop.ini",
]


def add(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image(50 + number))


def test_hidden_and_system_folders_are_nobodys_images(photos: Path) -> None:
    before = readable(only(photos))
    add(photos, HIDDEN + SYSTEM)
    assert readable(only(photos)) == before
    reasons = list(refused(only(photos)).values())
    assert (reasons.count("hidden"), reasons.count("system")) == (7, 9)
    assert refused(only(photos))["anna/.picasaoriginals"] == "hidden"
    assert refused(only(photos))["@eaDir"] == "system"


def test_a_hidden_folder_may_be_named_as_the_source(photos: Path) -> None:
    add(photos, [".private/carl/1.png"])
    assert readable(only(photos / ".private")) == {"carl/1.png": ("carl", None)}


@pytest.mark.parametrize("name", ["@anna", "a.b", "recycle", "Thumbs", "..odd", "trash"])
def test_odd_names_of_people_are_no_system_folders(name: str, photos: Path) -> None:
    add(photos, [f"{name}/1.png"])
    assert (f"{name}/1.png" in readable(only(photos))) == (name != "..odd")


def test_hidden_and_system_members_of_a_shard(tmp_path: Path) -> None:
    odd = {f"./{name}": image(60) for name in (*HIDDEN, *SYSTEM)}
    source = only(shard(tmp_path / "s.tar", {f"./{name}": data for name, data in MEMBERS.items()} | odd))
    assert sorted(readable(source)) == ["s.tar/./a/001.png", "s.tar/./a/002.jpg", "s.tar/./b/001.main.png"]
    assert sorted(refused(source).values()) == ["hidden"] * 7 + ["system"] * 9


def test_hidden_things_beside_shards_change_nothing(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", {"0.png": image(0)})
    shard(tmp_path / "1.TAR", {"1.png": image(1)})
    (tmp_path / "._0.tar").write_bytes(b"\0\5\x16\7")
    add(tmp_path, [".ipynb_checkpoints/1.png", "@eaDir/0.png", "__MACOSX/x", ".thumb.png"])
    assert list(readable(only(tmp_path))) == ["0.tar/0.png", "1.TAR/1.png"]


@pytest.mark.parametrize("identity", ["cls", "json.person"])
def test_names_with_full_stops_in_a_shard(identity: str, tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number, name in enumerate(name for name in NAMES if name not in ("22", "22.05.1 final")):
        members |= {f"{name}.png": image(number), f"{name}.TXT": name.encode(), f"{name}.cls": str(number).encode()}
        members |= {f"{name}.json": about(str(number))}
    found = readable(only(shard(tmp_path / "s.tar", members), identity=identity, caption="txt"))
    assert len(found) == 4
    for number, (name, known) in enumerate(found.items()):
        assert known == (str(number), name.removeprefix("s.tar/").removesuffix(".png"))


def test_names_as_webdataset_means_them(tmp_path: Path) -> None:
    members = {"1.main.png": image(1), "1.json": about("anna"), "1.main.txt": b"at the sea"}
    found = readable(only(shard(tmp_path / "s.tar", members), identity="json.person", caption="txt"))
    assert found == {"s.tar/1.main.png": ("anna", "at the sea")}


@pytest.mark.parametrize(
    "members", [["1.png", "1.mask.png"], ["1.left.png", "1.right.png", "1.json"], ["1.png", "1.jpg", "1.txt"]]
)
def test_names_that_could_mean_either_are_refused(members: list[str], tmp_path: Path) -> None:
    given = {name: about("anna") if name.endswith("n") else image(place) for place, name in enumerate(members)}
    source = only(shard(tmp_path / "s.tar", given), identity="json.person")
    assert (readable(source), refused(source)) == ({}, {"s.tar/1": "several images"})
