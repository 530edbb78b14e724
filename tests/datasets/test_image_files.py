"""Folders as people have them: what systems and programs leave in them is nobody's image."""

from pathlib import Path

import pytest

from promptnet import cli
from promptnet.datasets.image_files import image_files
from promptnet.evaluation.identity import images_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        *("b.PNG", "a/c.jpg", "notes.txt"),
        *(".Trash-1000/x.png", ".ipynb_checkpoints/x.png", "@eaDir/x.png", "._b.png", "__MACOSX/b.png"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path)
    return tmp_path


def test_hidden_and_system_files_are_left_out(folder: Path) -> None:
    assert image_files(folder) == [folder / "a/c.jpg", folder / "b.PNG"]
    assert image_files(folder, deep=False) == images_in(folder) == [folder / "b.PNG"]
    assert image_files(folder / "b.PNG") == []


@pytest.mark.parametrize("words", [["pretrain-e4t", "--out", "e4t", "--images"]])
def test_a_folder_of_nothing_else_holds_no_image(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails/x.png").touch()
    assert cli.main([*words, str(tmp_path)]) == 2
    assert "must be a folder that holds images" in capsys.readouterr().err
