import random

import numpy as np
import pytest

from promptnet.datasets.avatars.person import changed, sample_attributes
from promptnet.evaluation.harness.chances import attribute_chances, identity_chances
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.subjects.score import METRICS, make_scorer

SIZE_PX = 64


@pytest.fixture
def people():
    return make_people("test", 3, 2)


@pytest.fixture
def scorer(judge, people):
    judge.learn(people)
    return make_scorer(people, judge, "test", SIZE_PX)


def images(renderer, people, method):
    return [renderer(person, Method(method, "prompt")) for person in people]


def test_the_truth_scores_one_everywhere_at_no_distance(scorer, renderer, people):
    scores = scorer.score(images(renderer, people, "ceiling"))
    assert set(scores.people) == set(METRICS)
    for metric in ("identity", "attributes", "harmonic", "preservation"):
        np.testing.assert_array_equal(scores.people[metric], np.ones(3))
    for metric in ("distance", "pixel_l1"):
        np.testing.assert_allclose(scores.people[metric], np.zeros(3), atol=1e-12)
    assert set(scores.fields.values()) == {1.0}


def test_a_copy_of_the_reference_has_the_identity_only(scorer, renderer, people):
    scores = scorer.score(images(renderer, people, "plain-guidance"))
    np.testing.assert_array_equal(scores.people["identity"], np.ones(3))
    np.testing.assert_array_equal(scores.people["preservation"], np.ones(3))
    np.testing.assert_array_equal(scores.people["harmonic"], np.zeros(3))
    for person, found in zip(people, scores.people["attributes"], strict=True):
        asked = [field for eval_prompt in person.eval_prompts for field in eval_prompt.fields]
        chance = sum(attribute_chances()[person.identity.style][field] for field in asked) / len(asked)
        assert found == pytest.approx(-chance / (1 - chance))
    assert (scores.people["distance"] > 0).all()
    assert (scores.people["pixel_l1"] > 0).all()


def test_a_stranger_with_the_requested_fields_has_attributes_only(scorer, renderer, people):
    scores = scorer.score(images(renderer, people, "prompt-only"))
    np.testing.assert_array_equal(scores.people["attributes"], np.ones(3))
    np.testing.assert_array_equal(scores.people["harmonic"], np.zeros(3))
    assert scores.fields["style"] == 1
    assert scores.fields["skin"] == scores.fields["hair"] == 0
    for person, found in zip(people, scores.people["identity"], strict=True):
        chance = sum(identity_chances("test")[person.identity.style].values()) / 5
        assert found == pytest.approx((0.2 - chance) / (1 - chance))


def test_what_the_prompt_leaves_out_has_to_stay(scorer, judge, people):
    """An image with everything else changed follows every prompt and keeps nothing."""
    generated = []
    for person in people:
        changes = [changed_elsewhere(person, eval_prompt) for eval_prompt in person.eval_prompts]
        generated.append([judge.render(person.identity, each) for each in changes])
    scores = scorer.score(generated)
    np.testing.assert_array_equal(scores.people["attributes"], np.ones(3))
    assert (scores.people["preservation"] < 0).all(), "worse than guessing, for nothing is right"


def changed_elsewhere(person, eval_prompt):
    """Return attributes of which every field that the prompt leaves out has another word."""
    rng, kept = random.Random(0), eval_prompt.kept()
    others = sample_attributes(person.identity.style, rng)
    while any(others.record()[field] == word for field, word in kept.items()):
        others = sample_attributes(person.identity.style, rng)
    return changed(eval_prompt.attributes, others, set(kept))


def test_one_wrong_image_costs_only_its_person(scorer, renderer, people):
    generated = images(renderer, people, "ceiling")
    generated[1][0] = images(renderer, people, "plain-guidance")[1][0]
    scores = scorer.score(generated)
    assert scores.people["attributes"][1] < 1
    np.testing.assert_array_equal(scores.people["attributes"][[0, 2]], np.ones(2))
    np.testing.assert_array_equal(scores.people["distance"] > 1e-9, [False, True, False])


def test_a_method_needs_an_image_for_every_prompt(scorer, renderer, people):
    with pytest.raises(ValueError, match="4 images for 6 prompts"):
        scorer.score(images(renderer, people, "ceiling")[:2])
