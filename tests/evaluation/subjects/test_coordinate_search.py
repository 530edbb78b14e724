import pytest

from promptnet.evaluation.subjects.coordinate_search import coordinate_search

GRID = {"x": (0, 1, 2, 3), "y": (0, 1, 2, 3)}


def counted(function):
    scored = []

    def score_all(points):
        scored.extend(tuple(point.items()) for point in points)
        return [function(**point) for point in points]

    return score_all, scored


def test_a_separable_score_is_maximised():
    score_all, _ = counted(lambda x, y: -((x - 2) ** 2) - (y - 1) ** 2)
    assert coordinate_search(score_all, {"x": 0, "y": 3}, GRID) == ({"x": 2, "y": 1}, 0)


def test_no_point_is_scored_twice():
    score_all, scored = counted(lambda x, y: x * y)
    coordinate_search(score_all, {"x": 1, "y": 1}, GRID, rounds=5)
    assert len(scored) == len(set(scored))


def test_another_round_uses_what_the_last_one_found():
    # From (0, 0) a step in x alone or y alone is no better; y helps only after x has changed.
    def score(x, y):
        return {(0, 0): 1, (2, 0): 2, (2, 3): 3, (1, 3): 4}.get((x, y), 0)

    assert coordinate_search(counted(score)[0], {"x": 0, "y": 0}, GRID, rounds=1) == ({"x": 2, "y": 3}, 3)
    assert coordinate_search(counted(score)[0], {"x": 0, "y": 0}, GRID, rounds=2) == ({"x": 1, "y": 3}, 4)


def test_of_equal_points_the_first_stays():
    score_all, scored = counted(lambda x, y: 7)
    assert coordinate_search(score_all, {"x": 2, "y": 2}, GRID, rounds=9) == ({"x": 2, "y": 2}, 7)
    assert len(scored) == 7  # one round: the start and three others for each of the two parameters


def test_parameters_outside_the_grid_keep_their_values():
    score_all, _ = counted(lambda x, y, mode: x)
    assert coordinate_search(score_all, {"x": 0, "y": 0, "mode": "a"}, GRID)[0] == {"x": 3, "y": 0, "mode": "a"}


def test_no_rounds_raise():
    with pytest.raises(ValueError, match="rounds=0"):
        coordinate_search(lambda points: [0.0 for _ in points], {}, {}, rounds=0)
