"""Files and folders appear whole or not at all."""

import os
from pathlib import Path

import pytest
from PIL import Image

from promptnet.io.atomic import check_folder, new_folder, write_whole


def test_appears_with_all_its_files(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with new_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("text")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "text"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_leaves_nothing_when_the_block_fails(tmp_path: Path, failure: type[BaseException]) -> None:
    def write_half() -> None:
        with new_folder(tmp_path / "made") as folder:
            (folder / "half").write_text("half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_existing_names_and_missing_parents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"), new_folder(tmp_path / "there"):
        pass
    with pytest.raises(ValueError, match="does not exist"), new_folder(tmp_path / "absent" / "made"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("content", [b"new", "new", lambda part: part.write_text("new")])
def test_a_file_is_replaced_whole(content, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    write_whole(path, content)
    assert path.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(failure: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half(part: Path) -> None:
        part.write_text("ha")
        raise failure

    with pytest.raises(failure):
        write_whole(path, write_half)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_only_public_files_are_readable_by_others(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_whole(tmp_path / "private", b"")
        write_whole(tmp_path / "public", b"", public=True)
    finally:
        os.umask(umask)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("private", "public")] == [0o600, 0o644]


def test_the_temporary_file_keeps_the_ending_for_functions(tmp_path: Path) -> None:
    write_whole(tmp_path / "image.png", Image.new("RGB", (2, 2)).save)
    with Image.open(tmp_path / "image.png") as image:
        assert image.format == "PNG"


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)  # an administrator may write anywhere
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(ValueError, match="cannot be written"):
            check_folder(folder)
