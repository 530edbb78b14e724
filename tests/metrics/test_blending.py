"""Blending, by hand."""

import pytest

from promptnet.metrics.blending import Blending, blending

A = {"hair": "long", "skin": "dark", "nose": "small"}
B = {"hair": "short", "skin": "dark", "nose": "large"}


def test_two_that_are_themselves_have_all_of_their_own_and_none_of_the_other():
    assert blending([A, B], [A, B]) == Blending(1.0, 0.0)


def test_a_field_of_the_other_counts_only_where_they_differ():
    found = [{**A, "hair": "short"}, B]  # one of A's two differing fields is B's
    assert blending(found, [A, B]) == Blending((2 / 3 + 1) / 2, (1 / 2 + 0) / 2)
    assert blending([B, A], [A, B]) == Blending(1 / 3, 1.0)


def test_where_nobody_said_who_is_where_the_better_order_counts():
    assert blending([B, A], [A, B], free=True) == Blending(1.0, 0.0, swapped=True)
    assert not blending([A, B], [A, B], free=True).swapped


def test_a_field_that_is_somebody_elses_is_neither():
    assert blending([{**A, "hair": "none"}, B], [A, B]) == Blending((2 / 3 + 1) / 2, 0.0)


def test_people_who_are_alike_cannot_blend_and_it_takes_two():
    assert blending([A, A], [A, A]) == Blending(1.0, 0.0)
    with pytest.raises(ValueError, match="of two people"):
        blending([A], [A, B])
