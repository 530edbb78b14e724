from collections import Counter

import numpy as np
import pytest

from promptnet.datasets.avatars.captions import mentioned
from promptnet.datasets.avatars.render import ATTRIBUTE_FIELDS, FIELDS, identities
from promptnet.evaluation.harness.tasks import (
    PLACEHOLDER,
    attribute_chances,
    identity_chances,
    make_described_people,
    make_people,
)


def test_tasks_are_a_function_of_their_arguments_and_fewer_are_a_prefix_of_more():
    many = make_people("validation", 6, 4, seed=3)
    assert many == make_people("validation", 6, 4, seed=3)
    assert many != make_people("validation", 6, 4, seed=4)
    for few, more in zip(make_people("validation", 3, 2, seed=3), many, strict=False):
        assert (few.identity, few.reference, few.seed) == (more.identity, more.reference, more.seed)
        assert few.eval_prompts == more.eval_prompts[:2]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_people_are_of_the_split_and_each_occurs_once(split):
    people = make_people(split, 40, 1)
    assert len({person.identity for person in people}) == 40
    assert {person.identity for person in people} <= set(identities(split))


def test_every_requested_value_differs_from_the_reference_and_the_rest_is_kept():
    for person in make_people("test", 30, 4):
        reference = person.reference.record()
        for eval_prompt in person.eval_prompts:
            assert 2 <= len(eval_prompt.fields) <= 4
            kept = set(ATTRIBUTE_FIELDS) - set(eval_prompt.fields)
            assert all(eval_prompt.asked()[field] != reference[field] for field in eval_prompt.fields)
            assert all(eval_prompt.attributes.record()[field] == reference[field] for field in kept)


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
        for seed in range(15)
        for person in make_people("train", 64, 4, seed)
        for eval_prompt in person.eval_prompts
    ]
    for field in ATTRIBUTE_FIELDS:
        values = Counter(eval_prompt.asked()[field] for eval_prompt in eval_prompts if field in eval_prompt.fields)
        expected = values.total() * attribute_chances()["toon"][field]
        assert set(values) == set(FIELDS[field])
        np.testing.assert_allclose(list(values.values()), expected, rtol=0.2)


def test_identity_chances_know_the_style():
    chances = identity_chances("test")
    assert set(chances) == set(FIELDS["style"])
    for of_style in chances.values():
        assert of_style["style"] == 1
        assert 0.5 <= of_style["beard"] < 0.7
        assert 1 / 6 <= of_style["hair_color"] < 0.5


def test_too_many_people_and_no_prompts_raise():
    with pytest.raises(ValueError, match=r"people=10000: the test split has 1 to \d+ people"):
        make_people("test", 10_000, 4)
    with pytest.raises(ValueError, match="prompts=0"):
        make_people("test", 1, 0)


def test_reference_and_truth_are_images_of_the_same_person():
    person = make_people("test", 1, 2)[0]
    assert person.reference_image(32).size == (32, 32)
    truths = person.true_images(32)
    assert len(truths) == 2
    assert truths[0].tobytes() != person.reference_image(32).tobytes()
