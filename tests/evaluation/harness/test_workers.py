from pathlib import Path

import pytest

from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.harness.workers import RendererSpec, WorkerPool, default_workers

SPEC = RendererSpec(Path("nowhere"), steps=1)
METHODS = [
    Method("first", "prompt", config={"guidance_scale": 1.0}),
    Method("second", "prompt", config={"guidance_scale": 2.0}),
]


@pytest.fixture
def image_cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path, {"base": "b"}, 1, 64)


def test_every_method_is_generated_for_every_person_person_by_person(image_cache, renderer):
    people = make_people("test", 2, 1)
    with WorkerPool(SPEC, build=lambda: renderer) as pool:
        pool.generate(people, METHODS, image_cache)
    assert renderer.generated == [(0, "first"), (0, "second"), (1, "first"), (1, "second")]
    assert all(image_cache.has(person, method) for person in people for method in METHODS)


def test_an_interrupted_run_resumes(image_cache, renderer):
    people = make_people("test", 3, 1)

    def interrupted(person, method):
        if (person.index, method.name) == (1, "second"):
            raise KeyboardInterrupt
        return renderer(person, method)

    with pytest.raises(KeyboardInterrupt), WorkerPool(SPEC, build=lambda: interrupted) as pool:
        pool.generate(people, METHODS, image_cache)
    with WorkerPool(SPEC, build=lambda: renderer) as pool:
        pool.generate(people, METHODS, image_cache)
    generated = [(person.index, method.name) for person in people for method in METHODS]
    assert renderer.generated == generated


def test_nothing_is_loaded_when_nothing_is_missing(image_cache, renderer):
    people = make_people("test", 1, 1)
    with WorkerPool(SPEC, build=lambda: renderer) as pool:
        pool.generate(people, METHODS, image_cache)

    def build():
        raise AssertionError("loaded a model for nothing")

    with WorkerPool(SPEC, build=build) as pool:
        pool.generate(people, METHODS, image_cache)


def test_processes_generate_the_same_images(base: Path, tmp_path: Path):
    # The truth needs no model, so real processes can generate it.
    people, method = make_people("test", 3, 2), Method("ceiling", "truth")
    image_cache = ImageCache(tmp_path / "pictures", {"base": "b"}, 1, 64)
    with WorkerPool(RendererSpec(base, steps=1), workers=2) as pool:
        pool.generate(people, [method], image_cache)
    for person in people:
        generated = [image.tobytes() for image in image_cache.get(person, method)]
        assert generated == [image.tobytes() for image in person.true_images(64)]


def test_an_accelerator_gets_one_process():
    assert default_workers("cuda") == 1
    assert 1 <= default_workers("cpu") <= 4
