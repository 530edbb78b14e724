from collections import Counter

import numpy as np
import pytest

from promptnet.datasets.avatars.captions import mentioned
from promptnet.datasets.avatars.colours import is_held_out
from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, FIELDS, sample_identity
from promptnet.datasets.avatars.styles import STYLES
from promptnet.evaluation.harness.chances import attribute_chances, identity_chances
from promptnet.evaluation.harness.tasks import FRAMES, PLACEHOLDER, make_described_people, make_people


def test_tasks_are_a_function_of_their_arguments_and_fewer_are_a_prefix_of_more():
    many = make_people("validation", 6, 4, seed=3)
    assert many == make_people("validation", 6, 4, seed=3)
    assert many != make_people("validation", 6, 4, seed=4)
    for few, more in zip(make_people("validation", 3, 2, seed=3), many, strict=False):
        assert (few.identity, few.reference, few.seed) == (more.identity, more.reference, more.seed)
        assert few.eval_prompts == more.eval_prompts[:2]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_people_have_no_end_and_each_occurs_once(split):
    people = make_people(split, 600, 1)
    others = make_people("test" if split == "validation" else "validation", 40, 1)
    trained_or_watched = [sample_identity(0, index, which) for index in range(600) for which in ("train", split)]
    known = {repr(identity) for identity in trained_or_watched} | {repr(person.identity) for person in others}
    assert len({repr(person.identity) for person in people}) == 600
    assert not known & {repr(person.identity) for person in people}


def test_people_of_training_are_those_that_trainings_draw():
    assert [person.identity for person in make_people("train", 3, 1, seed=7)] == [
        sample_identity(0, index, "train") for index in range(3)
    ]
    assert make_people("train", 3, 1, seed=7) != make_people("train", 3, 1, seed=8)


@pytest.mark.parametrize("world", ["style", "hair", "color"])
def test_people_of_held_out_worlds_are_what_no_training_has(world):
    for person in make_people("test", 20, 1, world=world):
        spec, who = STYLES[person.identity.style], person.identity
        found = {
            "style": spec.is_held_out,
            "hair": (who.hair, who.drawings[0]) in spec.held_out_hair,
            "color": is_held_out("hair_color", who.hair_color),
        }
        assert found == {name: name == world for name in found}


def test_every_requested_value_differs_from_the_reference_and_the_rest_is_kept():
    for person in make_people("test", 30, 4):
        reference = person.reference.record()
        for eval_prompt in person.eval_prompts:
            assert 2 <= len(eval_prompt.fields) <= 4
            kept = set(ATTRIBUTE_FIELDS) - set(eval_prompt.fields)
            assert all(eval_prompt.asked()[field] != reference[field] for field in eval_prompt.fields)
            assert all(getattr(eval_prompt.attributes, f) == getattr(person.reference, f) for f in kept)
            if "expression" in kept:
                assert eval_prompt.attributes.drawing == person.reference.drawing


def test_the_first_prompt_may_name_nothing():
    many, plain = make_people("test", 10, 3, neutral_first=True), make_people("test", 10, 3)
    for person, other in zip(many, plain, strict=True):
        assert person.eval_prompts[0].prompt == "a portrait of S*"
        assert (person.eval_prompts[0].fields, person.eval_prompts[0].attributes) == ((), person.reference)
        assert person.eval_prompts[1:] == other.eval_prompts[1:]


def test_a_described_person_is_the_whole_record_in_words():
    for person in make_people("validation", 10, 2, neutral_first=True):
        said = person.described()
        assert [mentioned(each.prompt) for each in said.eval_prompts] == [each.record() for each in person.truths()]
        assert said.truths() == person.truths()
        assert [each.seed for each in said.eval_prompts] == [each.seed for each in person.eval_prompts]


@pytest.mark.parametrize("frame", FRAMES)
def test_every_frame_gives_a_reference_of_the_same_tasks(frame):
    (person,), (plain,) = make_people("validation", 1, 1, frame=frame), make_people("validation", 1, 1)
    assert (person.reference_image(64).tobytes() == plain.reference_image(64).tobytes()) == (frame == "plain")
    assert person.eval_prompts == plain.eval_prompts


def test_prompts_name_the_requested_fields_alone():
    for person in make_people("test", 20, 4):
        for eval_prompt in person.eval_prompts:
            assert eval_prompt.prompt.count(PLACEHOLDER) == 1
            assert mentioned(eval_prompt.prompt) == eval_prompt.asked()


def test_noise_seeds_differ_between_images():
    seeds = [eval_prompt.seed for person in make_people("test", 30, 4) for eval_prompt in person.eval_prompts]
    assert len(set(seeds)) == len(seeds)


def test_described_people_have_every_field_in_the_caption():
    for person in make_described_people("test", 10, 2):
        for eval_prompt in person.eval_prompts:
            assert PLACEHOLDER not in eval_prompt.prompt
            assert mentioned(eval_prompt.prompt) == {**person.identity.record(), **eval_prompt.attributes.record()}


def test_requested_values_are_as_likely_as_attribute_chances_say():
    eval_prompts = [
        eval_prompt
        for seed in range(12)
        for person in make_people("validation", 64, 2, seed)
        for eval_prompt in person.eval_prompts
    ]
    for field in ATTRIBUTE_FIELDS:
        values = Counter(eval_prompt.asked()[field] for eval_prompt in eval_prompts if field in eval_prompt.fields)
        expected = values.total() * attribute_chances()["toon"][field]
        assert set(values) == set(FIELDS[field])
        np.testing.assert_allclose(list(values.values()), expected, rtol=0.25)


def test_identity_chances_know_the_style():
    chances = identity_chances("test")
    assert set(chances) == {style for style, spec in STYLES.items() if not spec.is_held_out}
    for style, of_style in chances.items():
        assert of_style["style"] == 1
        assert 0.55 <= of_style["beard"] < 0.75  # 65 of a hundred have none
        assert 1 / 6 <= of_style["hair_color"] < 0.3
        assert 1 / len(STYLES[style].hair) <= of_style["hair"] < 0.3
    assert set(identity_chances("test", "style")) == set(FIELDS["style"]) - set(chances)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"people": 0}, "people=0"),
        ({"prompts": 0}, "prompts=0"),
        ({"split": "judge"}, "split='judge'"),
        ({"frame": "fisheye"}, "frame='fisheye'"),
        ({"world": "moon"}, "world='moon'"),
        ({"split": "train", "world": "style"}, "held out of training"),
    ],
)
def test_tasks_that_cannot_be_raise(asked, message):
    with pytest.raises(ValueError, match=message):
        make_people(**{"split": "test", "people": 1, "prompts": 1, **asked})


def test_reference_and_truth_are_images_of_the_same_person():
    person = make_people("test", 1, 2)[0]
    assert person.reference_image(32).size == (32, 32)
    truths = person.true_images(32)
    assert len(truths) == 2
    assert truths[0].tobytes() != person.reference_image(32).tobytes()
