from pathlib import Path

import pytest

from promptnet.evaluation.harness.image_cache import Gallery
from promptnet.evaluation.harness.methods import Row
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.harness.workers import Crew, StudioSpec, default_workers

SPEC = StudioSpec(Path("nowhere"), steps=1)
ROWS = [Row("first", "prompt", knobs={"guidance_scale": 1.0}), Row("second", "prompt", knobs={"guidance_scale": 2.0})]


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery(tmp_path, {"base": "b"}, 1, 64)


def test_every_row_is_drawn_for_every_person_persons_together(gallery, studio):
    people = make_people("test", 2, 1)
    with Crew(SPEC, build=lambda: studio) as crew:
        crew.draw(people, ROWS, gallery)
    assert studio.drawn == [(0, "first"), (0, "second"), (1, "first"), (1, "second")]
    assert all(gallery.has(person, row) for person in people for row in ROWS)


def test_an_interrupted_run_goes_on_where_it_stopped(gallery, studio):
    people = make_people("test", 3, 1)

    def interrupted(person, row):
        if (person.index, row.name) == (1, "second"):
            raise KeyboardInterrupt
        return studio(person, row)

    with pytest.raises(KeyboardInterrupt), Crew(SPEC, build=lambda: interrupted) as crew:
        crew.draw(people, ROWS, gallery)
    with Crew(SPEC, build=lambda: studio) as crew:
        crew.draw(people, ROWS, gallery)
    drawn = [(person.index, row.name) for person in people for row in ROWS]
    assert studio.drawn == drawn


def test_nothing_is_loaded_when_nothing_is_missing(gallery, studio):
    people = make_people("test", 1, 1)
    with Crew(SPEC, build=lambda: studio) as crew:
        crew.draw(people, ROWS, gallery)

    def build():
        raise AssertionError("loaded a model for nothing")

    with Crew(SPEC, build=build) as crew:
        crew.draw(people, ROWS, gallery)


def test_processes_draw_the_same_pictures(base: Path, tmp_path: Path):
    # The truth needs no model, so real processes can draw it.
    people, row = make_people("test", 3, 2), Row("ceiling", "truth")
    gallery = Gallery(tmp_path / "pictures", {"base": "b"}, 1, 64)
    with Crew(StudioSpec(base, steps=1), workers=2) as crew:
        crew.draw(people, [row], gallery)
    for person in people:
        drawn = [picture.tobytes() for picture in gallery.get(person, row)]
        assert drawn == [picture.tobytes() for picture in person.true_images(64)]


def test_one_process_draws_on_an_accelerator():
    assert default_workers("cuda") == 1
    assert 1 <= default_workers("cpu") <= 4
