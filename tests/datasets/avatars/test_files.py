"""Avatars as files: a folder a person, several images of each, captions that are true."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptnet.datasets.avatars.captions import mentioned
from promptnet.datasets.avatars.files import write_avatars
from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, Avatar, sample_identity


def test_a_person_has_a_folder_of_several_images_each_with_a_caption(tmp_path: Path):
    places = write_avatars(tmp_path / "new" / "files", "train", 7, seed=3, size_px=16, images_per_person=3)
    assert [place.relative_to(tmp_path / "new/files").as_posix() for place in places] == [
        *("train-3-000000/000000.png", "train-3-000000/000001.png", "train-3-000000/000002.png"),
        *("train-3-000001/000003.png", "train-3-000001/000004.png", "train-3-000001/000005.png"),
        "train-3-000002/000006.png",
    ]
    images = [np.asarray(Image.open(place)) for place in places]
    assert {image.shape for image in images} == {(16, 16, 3)}
    assert len({image.tobytes() for image in images}) == 7
    captions = [place.with_suffix(".txt").read_text("utf-8") for place in places]
    assert all("portrait of S*" in caption for caption in captions)
    assert len(set(captions)) > 3


def test_images_show_the_folders_person_and_what_the_caption_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[Avatar] = []

    def noting(avatar: Avatar, size_px: int) -> Image.Image:
        shown.append(avatar)
        return Image.new("RGB", (size_px, size_px))

    monkeypatch.setattr("promptnet.datasets.avatars.files.render_avatar", noting)
    places = write_avatars(tmp_path, "validation", 60, seed=1, images_per_person=2)
    named = []
    for index, (avatar, place) in enumerate(zip(shown, places, strict=True)):
        assert avatar.identity == sample_identity(1, index // 2, "validation")
        said = mentioned(place.with_suffix(".txt").read_text("utf-8"))
        assert set(said) <= set(ATTRIBUTE_FIELDS)
        assert said.items() <= avatar.record().items()
        named.append(len(said))
    assert set(named) == {0, 1, 2, 3, 4, 5}
    assert sum(one.attributes != other.attributes for one, other in zip(shown[::2], shown[1::2], strict=True)) == 30


def test_the_same_call_writes_the_same_files_and_another_seed_or_split_other_folders(tmp_path: Path):
    places = write_avatars(tmp_path, "train", 2, size_px=16)
    before = [place.read_bytes() for place in places]
    assert [place.read_bytes() for place in write_avatars(tmp_path, "train", 2, size_px=16)] == before
    write_avatars(tmp_path, "train", 2, size_px=16, seed=1)
    write_avatars(tmp_path, "validation", 2, size_px=16)
    assert sorted(place.name for place in tmp_path.iterdir()) == [
        "train-0-000000",
        "train-1-000000",
        "validation-0-000000",
    ]


@pytest.mark.parametrize(("number", "of_each"), [(0, 4), (3, 0)])
def test_a_set_of_nothing_is_refused(number: int, of_each: int, tmp_path: Path):
    with pytest.raises(ValueError, match=f"num_images={number} and images_per_person={of_each}"):
        write_avatars(tmp_path, "train", number, images_per_person=of_each)
