from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.tasks import make_people

WEIGHTS = {"base": "b", "promptnet": "p", "promptnet-published": "pp"}
ROW = Method("plain-guidance", "subject", config={"subject_scale": 3.0})


@pytest.fixture
def person():
    return make_people("test", 1, 3)[0]


def test_images_come_back_to_the_bit(tmp_path: Path, person):
    image_cache = ImageCache(tmp_path / "pictures", WEIGHTS, 20, 32)
    images = person.true_images(32)
    assert not image_cache.has(person, ROW)
    image_cache.put(person, ROW, images)
    assert image_cache.has(person, ROW)
    assert [image.tobytes() for image in image_cache.get(person, ROW)] == [image.tobytes() for image in images]
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_what_changes_images_changes_the_path(tmp_path: Path, person):
    image_cache = ImageCache(tmp_path / "pictures", WEIGHTS, 20, 32)
    path = image_cache.path(person, ROW)
    others = [
        image_cache.path(person, replace(ROW, config={"subject_scale": 3.5})),
        image_cache.path(person, replace(ROW, tuned=True)),
        image_cache.path(person, replace(ROW, tuned=True, customize={"steps": 10})),
        image_cache.path(person, replace(ROW, encoder="promptnet-published")),
        image_cache.path(replace(person, eval_prompts=person.eval_prompts[:2]), ROW),
        image_cache.path(replace(person, seed=person.seed + 1), ROW),
        replace(image_cache, weights={**WEIGHTS, "base": "other"}).path(person, ROW),
        replace(image_cache, weights={**WEIGHTS, "promptnet": "other"}).path(person, ROW),
        replace(image_cache, steps=10).path(person, ROW),
        replace(image_cache, size_px=64).path(person, ROW),
    ]
    assert len({path, *others}) == len(others) + 1


def test_what_does_not_change_images_keeps_the_path(tmp_path: Path, person):
    image_cache = ImageCache(tmp_path, WEIGHTS, 20, 32)
    other = replace(image_cache, weights={**WEIGHTS, "promptnet-published": "other"})
    assert other.path(person, ROW) == image_cache.path(person, ROW)
    plain = Method("prompt-only", "prompt")
    assert replace(image_cache, weights={"base": "b"}).path(person, plain) == image_cache.path(person, plain)


def test_methods_with_the_same_settings_share_images(tmp_path: Path, person):
    image_cache = ImageCache(tmp_path, WEIGHTS, 20, 32)
    assert image_cache.path(person, ROW) == image_cache.path(person, replace(ROW, name="best"))


@pytest.mark.parametrize(("count", "size_px"), [(2, 32), (3, 16)])
def test_a_wrong_number_or_size_of_images_raises_and_writes_nothing(tmp_path: Path, person, count, size_px):
    image_cache = ImageCache(tmp_path, WEIGHTS, 20, 32)
    with pytest.raises(ValueError, match=f"generated {count} images"):
        image_cache.put(person, ROW, [Image.new("RGB", (size_px, size_px))] * count)
    assert list(tmp_path.iterdir()) == []


def test_a_method_may_set_the_size_of_its_images(tmp_path: Path, person):
    image_cache = ImageCache(tmp_path / "pictures", WEIGHTS, 20, 32)
    wide = replace(ROW, config={"width": 48, "height": 32})
    images = [image.resize((48, 32)) for image in person.true_images(32)]
    image_cache.put(person, wide, images)
    assert [image.tobytes() for image in image_cache.get(person, wide)] == [image.tobytes() for image in images]
    with pytest.raises(ValueError, match=r"\(48, 32\)"):
        image_cache.put(person, wide, person.true_images(32))
