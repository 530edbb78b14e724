"""Coordinate search: one parameter at a time over a grid, in rounds until nothing improves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Point = dict[str, Any]
ScoreAll = Callable[[Sequence[Point]], Sequence[float]]


def coordinate_search(
    score_all: ScoreAll, start: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], *, rounds: int = 2
) -> tuple[Point, float]:
    """Maximise a score over a grid.

    A parameter changes only if that is strictly better; of equal points the first stays. No point is scored twice.

    Args:
        score_all: returns the scores of several points, which can be generated together.
        start: the first point; parameters outside the grid keep their values.
        grid: parameter to the values tried, in the order in which parameters are searched.
        rounds: largest number of rounds over all parameters.

    Returns:
        The best point and its score.

    Raises:
        ValueError: `rounds` is not positive.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be 1 or more")
    known: list[tuple[Point, float]] = []

    def score(points: Sequence[Point]) -> list[float]:
        new = [point for point in points if not any(point == seen for seen, _ in known)]
        known.extend(zip(new, score_all(new) if new else [], strict=True))
        return [next(value for seen, value in known if seen == point) for point in points]

    best: Point = dict(start)
    [best_score] = score([best])
    for _ in range(rounds):
        before = best
        for parameter, values in grid.items():
            points = [{**best, parameter: value} for value in values]
            for point, value in zip(points, score(points), strict=True):
                if value > best_score:
                    best, best_score = point, value
        if best == before:
            break
    return best, best_score
