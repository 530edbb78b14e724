import numpy as np
import pytest

from promptnet.datasets.avatars.person import COLOR_FIELDS
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.subjects.exact import FRACTIONS, ExactScorer, a_person, harmonic, share_of_way
from promptnet.evaluation.subjects.exact_results import summarise_exact


@pytest.fixture
def people(judge):
    found = make_people("validation", 8, 2, 3, neutral_first=True)
    judge.learn(found)
    return found


@pytest.fixture
def truths(people):
    return [image for person in people for image in person.true_images(64)]


@pytest.fixture
def scorer(people, judge):
    return ExactScorer.of(people, judge)


def test_a_perfect_image_has_full_shares_and_no_error(scorer, truths):
    perfect = scorer.score(truths)
    assert all(np.nanmin(perfect[name]) == 1.0 for name in FRACTIONS)
    assert max(perfect[f"error_{field}"].max() for field in COLOR_FIELDS) < 1e-3
    assert max(perfect[name].max() for name in ("shape", "geometry")) < 1e-5
    assert np.isnan(perfect["attributes"][::2]).all(), "a neutral prompt names nothing"


def test_other_people_have_neither(scorer, truths, people):
    others, perfect = scorer.score(truths[2:] + truths[:2]), scorer.score(truths)
    assert np.nanmean(others["identity"]) < 0.7
    assert others["error_skin"].mean() > 3
    assert others["shape"].mean() > 0.05
    assert others["geometry"].mean() > 0.1
    results = summarise_exact({"prompt-only": others, "best": perfect}, perfect, people)["methods"]
    assert results["best"]["way"]["error_skin"]["mean"] == pytest.approx(1.0)
    assert results["prompt-only"]["way"]["error_skin"]["mean"] == pytest.approx(0.0)
    assert results["best"]["harmonic"]["mean"] == pytest.approx(1.0)
    assert sum(group["people"] for group in results["best"]["skin"].values()) == 8


def test_skin_read_too_light_has_a_positive_error(scorer, truths, people, judge):
    """Somebody with lighter skin, all else the same."""
    from dataclasses import replace

    pale = [replace(person, identity=replace(person.identity, skin="#fff0e6")) for person in people]
    judge.learn(pale)
    found = scorer.score([image for person in pale for image in person.true_images(64)])
    assert (found["lightness_skin"] > 0).all()
    assert found["error_hair_color"].max() < 1e-3


def test_half_of_the_error_is_half_of_the_way():
    nothing, truth = np.array([4.0, 6.0]), np.array([0.0, 0.0])
    half = share_of_way(np.array([2.0, 3.0]), nothing, truth)
    assert half is not None
    assert half["mean"] == pytest.approx(0.5)
    assert share_of_way(truth, truth, nothing) is None


def test_the_harmonic_mean_counts_attributes_and_everything_of_a_person():
    names = ("error_skin", "error_hair_color", "shape", "geometry")
    nothing, truth = ({name: np.full(1, value) for name in names} for value in (1.0, 0.0))
    method = {name: np.full(1, 0.5) for name in names} | {"identity": np.ones(1), "attributes": np.ones(1)}
    everything = (1 + 4 * 0.5) / 5
    assert harmonic(method, nothing, truth) == pytest.approx(2 * everything / (everything + 1))
    assert harmonic({**method, "attributes": np.zeros(1)}, nothing, truth) == 0
    worse = {name: np.full(1, 9.0) for name in names} | {"identity": np.zeros(1), "attributes": np.zeros(1)}
    assert harmonic(worse, nothing, truth) == 0


def test_a_person_is_the_mean_of_the_images_to_which_a_measure_applies():
    values = np.array([1.0, np.nan, 0.5, 1.0, np.nan, np.nan])
    np.testing.assert_array_equal(a_person(values, 2), [1.0, 0.75, np.nan])


def test_a_measure_that_applies_to_nobody_is_none(judge):
    people = make_people("validation", 3, 1, neutral_first=True)
    judge.learn(people)
    perfect = ExactScorer.of(people, judge).score([person.true_images(64)[0] for person in people])
    best = summarise_exact({"best": perfect}, perfect, people)["methods"]["best"]
    assert best["attributes"] is None
    assert best["identity"]["mean"] == 1
