from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from promptnet.evaluation.harness.image_cache import Gallery
from promptnet.evaluation.harness.methods import Row
from promptnet.evaluation.harness.tasks import make_people

WEIGHTS = {"base": "b", "promptnet": "p", "promptnet-published": "pp"}
ROW = Row("plain-guidance", "subject", knobs={"subject_scale": 3.0})


@pytest.fixture
def person():
    return make_people("test", 1, 3)[0]


def test_pictures_come_back_to_the_bit(tmp_path: Path, person):
    gallery = Gallery(tmp_path / "pictures", WEIGHTS, 20, 32)
    pictures = person.true_images(32)
    assert not gallery.has(person, ROW)
    gallery.put(person, ROW, pictures)
    assert gallery.has(person, ROW)
    assert [picture.tobytes() for picture in gallery.get(person, ROW)] == [picture.tobytes() for picture in pictures]
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_whatever_changes_pictures_changes_the_place(tmp_path: Path, person):
    gallery = Gallery(tmp_path / "pictures", WEIGHTS, 20, 32)
    path = gallery.path(person, ROW)
    others = [
        gallery.path(person, replace(ROW, knobs={"subject_scale": 3.5})),
        gallery.path(person, replace(ROW, tuned=True)),
        gallery.path(person, replace(ROW, tuned=True, customize={"steps": 10})),
        gallery.path(person, replace(ROW, encoder="promptnet-published")),
        gallery.path(replace(person, asks=person.asks[:2]), ROW),
        gallery.path(replace(person, seed=person.seed + 1), ROW),
        replace(gallery, weights={**WEIGHTS, "base": "other"}).path(person, ROW),
        replace(gallery, weights={**WEIGHTS, "promptnet": "other"}).path(person, ROW),
        replace(gallery, steps=10).path(person, ROW),
        replace(gallery, size_px=64).path(person, ROW),
    ]
    assert len({path, *others}) == len(others) + 1


def test_what_does_not_touch_pictures_leaves_the_place(tmp_path: Path, person):
    gallery = Gallery(tmp_path, WEIGHTS, 20, 32)
    other = replace(gallery, weights={**WEIGHTS, "promptnet-published": "other"})
    assert other.path(person, ROW) == gallery.path(person, ROW)
    plain = Row("prompt-only", "prompt")
    assert replace(gallery, weights={"base": "b"}).path(person, plain) == gallery.path(person, plain)


def test_rows_with_the_same_settings_share_pictures(tmp_path: Path, person):
    gallery = Gallery(tmp_path, WEIGHTS, 20, 32)
    assert gallery.path(person, ROW) == gallery.path(person, replace(ROW, name="best"))


@pytest.mark.parametrize(("count", "size_px"), [(2, 32), (3, 16)])
def test_a_wrong_number_or_size_of_pictures_is_refused_and_nothing_written(tmp_path: Path, person, count, size_px):
    gallery = Gallery(tmp_path, WEIGHTS, 20, 32)
    with pytest.raises(ValueError, match=f"drew {count} pictures"):
        gallery.put(person, ROW, [Image.new("RGB", (size_px, size_px))] * count)
    assert list(tmp_path.iterdir()) == []


def test_a_row_may_say_how_large_its_pictures_are(tmp_path: Path, person):
    gallery = Gallery(tmp_path / "pictures", WEIGHTS, 20, 32)
    wide = replace(ROW, knobs={"width": 48, "height": 32})
    pictures = [picture.resize((48, 32)) for picture in person.true_images(32)]
    gallery.put(person, wide, pictures)
    assert [picture.tobytes() for picture in gallery.get(person, wide)] == [picture.tobytes() for picture in pictures]
    with pytest.raises(ValueError, match=r"\(48, 32\)"):
        gallery.put(person, wide, person.true_images(32))
