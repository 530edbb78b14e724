"""What `promptnet calibrate` shows an encoder as known."""

from pathlib import Path

import pytest
from PIL import Image

from promptnet.cli import main
from promptnet.commands.calibrate import _known


def test_known_avatars_are_people_of_training_and_unseen_ones_set_the_limits():
    known, unseen = _known("avatars", 8, 3, 16)
    assert (len(known), len(unseen)) == (8, 2)
    assert {image.size for image in (*known, *unseen)} == {(32, 32)}
    assert len({image.tobytes() for image in (*known, *unseen)}) == 10
    again, _ = _known("avatars", 8, 3, 16)
    assert [image.tobytes() for image in again] == [image.tobytes() for image in known]


def test_a_folder_of_known_images_is_split(tmp_path: Path):
    for place in range(10):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(tmp_path / f"{place}.png")
    known, unseen = _known(str(tmp_path), 8, 0, 64)
    assert [path.name for path in unseen] == ["0.png", "5.png"]
    assert len(known) == 8
    assert not set(known) & set(unseen)


@pytest.mark.parametrize("known", ["people", "nowhere"])
def test_what_is_no_folder_is_refused(known: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["calibrate", "--known", known, "--out", str(tmp_path)]) == 2
    assert f"'{known}' is no folder of images" in capsys.readouterr().err
