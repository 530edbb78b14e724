"""New folders appear whole or not at all."""

from pathlib import Path

import pytest

from promptnet.io.folders import new_folder


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
