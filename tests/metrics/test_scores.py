import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptnet.metrics.scores import (
    Scored,
    best_constant_guess,
    field_accuracy,
    harmonic,
    rescaled,
    rescaled_fraction,
)

CHANCES = {"toon": {"style": 1.0, "skin": 0.25, "beard": 0.5, "glasses": 0.5, "background": 0.2}}


def test_the_best_constant_guess_is_the_majority_within_each_style():
    people = [
        ("toon", {"style": "toon", "skin": "fair"}),
        ("toon", {"style": "toon", "skin": "fair"}),
        ("toon", {"style": "toon", "skin": "dark"}),
        ("micah", {"style": "micah", "skin": "dark", "beard": "none"}),
    ]
    assert best_constant_guess(people) == {
        "toon": {"style": 1.0, "skin": 2 / 3},
        "micah": {"style": 1.0, "skin": 1.0, "beard": 1.0},
    }


def test_rescaling_puts_guessing_at_zero_and_perfect_at_one():
    assert rescaled(0.4, 0.4) == 0
    assert rescaled(1.0, 0.4) == 1
    assert rescaled(0.7, 0.4) == pytest.approx(0.5)
    assert rescaled(0.1, 0.4) == pytest.approx(-0.5)


def test_a_certain_guess_raises():
    with pytest.raises(ValueError, match=r"chance 1\.0 .* request other fields"):
        rescaled(1.0, 1.0)


@pytest.mark.parametrize(
    ("identity", "attributes", "expected"),
    [(1.0, 1.0, 1.0), (0.5, 1.0, 2 / 3), (0.6, 0.3, 0.4), (0.0, 0.9, 0.0), (-0.2, 0.9, 0.0), (-0.5, -0.5, 0.0)],
)
def test_harmonic_mean_clips_at_guessing(identity: float, attributes: float, expected: float):
    assert harmonic(identity, attributes) == pytest.approx(expected)


@given(st.floats(0.001, 1), st.floats(0.001, 1))
def test_harmonic_mean_lies_between_the_smaller_and_twice_the_smaller(first: float, second: float):
    smaller = min(first, second)
    assert smaller - 1e-12 <= harmonic(first, second) <= min(max(first, second), 2 * smaller) + 1e-12


def test_identity_by_hand():
    truth = {"style": "toon", "skin": "fair", "beard": "none"}
    right = Scored(truth, truth)
    wrong_skin = Scored({**truth, "skin": "dark"}, truth)
    # 5 of 6 right; guessing gets (1 + 1/4 + 1/2) / 3 = 7/12; (5/6 - 7/12) / (5/12) = 3/5
    assert rescaled_fraction([right, wrong_skin], "toon", CHANCES) == pytest.approx(0.6)


def test_attributes_count_requested_fields_only_each_once():
    read = {"glasses": "none", "background": "teal", "skin": "dark"}
    first = Scored(read, {"glasses": "sunglasses"})
    second = Scored(read, {"glasses": "none", "background": "teal"})
    # 2 of 3 right; guessing gets (0.5 + 0.5 + 0.2) / 3 = 0.4; (2/3 - 2/5) / (3/5) = 4/9
    assert rescaled_fraction([first, second], "toon", CHANCES) == pytest.approx(4 / 9)


def test_guessing_the_majority_scores_zero():
    people = [{"style": "toon", "skin": skin, "beard": "none"} for skin in ("fair", "fair", "dark", "tan")]
    people.append({"style": "toon", "skin": "fair", "beard": "beard"})
    chances = best_constant_guess(("toon", person) for person in people)
    guess = {"style": "toon", "skin": "fair", "beard": "none"}
    scores = [rescaled_fraction([Scored(guess, person)], "toon", chances) for person in people]
    assert sum(scores) == pytest.approx(0, abs=1e-12)


def test_no_fields_and_unknown_fields_raise():
    with pytest.raises(ValueError, match="no field to score"):
        rescaled_fraction([Scored({"skin": "dark"}, {})], "toon", CHANCES)
    with pytest.raises(ValueError, match="'hair' of style 'toon'"):
        rescaled_fraction([Scored({"hair": "bun"}, {"hair": "bun"})], "toon", CHANCES)
    with pytest.raises(ValueError, match="'skin' of style 'micah'"):
        rescaled_fraction([Scored({"skin": "tan"}, {"skin": "tan"})], "micah", CHANCES)


def test_field_accuracy_is_over_the_images_that_request_the_field():
    images = [
        Scored({"glasses": "none", "skin": "dark"}, {"glasses": "none", "skin": "dark"}),
        Scored({"glasses": "none", "skin": "dark"}, {"glasses": "sunglasses"}),
    ]
    assert field_accuracy(images) == {"glasses": 0.5, "skin": 1.0}
