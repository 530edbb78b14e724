"""Percentile bootstrap over people.

Every method of the comparison has the same people and seeds, so people are the unit that is resampled, and one seed
gives every method the same resamples: differences and ratios of two methods are then paired.
B. Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 7(1), 1979.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.ArrayLike
Statistic = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """An estimate with the lower and upper end of its bootstrap interval."""

    mean: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        """Return the interval as `results.json` holds it."""
        return {"mean": self.mean, "low": self.low, "high": self.high}

    def above(self, other: "Interval") -> bool:
        """Return whether this interval lies wholly above `other` ("intervals apart")."""
        return self.low > other.high


def interval(values: Values, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Estimate the mean over people.

    Args:
        values: one number a person, (P,).
        resamples: number of resampled means behind the percentiles.
        level: fraction of resampled means inside the interval, in (0, 1).
        seed: decides which people are resampled.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite; `level` outside (0, 1).
    """
    column = _column(values)
    means = column[_resampled(len(column), resamples, seed)].mean(axis=1)  # (R,)
    return _percentiles(float(column.mean()), means, level)


def difference(
    values: Values, others: Values, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate mean(values) - mean(others) over the same people, resampled together.

    Raises:
        ValueError: the two differ in length, or `interval` raises.
    """
    first, second = _paired(values, others)
    return interval(first - second, resamples=resamples, level=level, seed=seed)


def ratio(values: Values, others: Values, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Estimate mean(values) / mean(others) over the same people, resampled together.

    Raises:
        ValueError: a mean of `others` is not positive, the two differ in length, or `interval` raises.
    """
    first, second = _paired(values, others)
    chosen = _resampled(len(first), resamples, seed)  # (R, P)
    below = second[chosen].mean(axis=1)  # (R,)
    if second.mean() <= 0 or (below <= 0).any():
        raise ValueError(f"a ratio needs a positive mean in the denominator, got {second.mean():.3f}: take more people")
    return _percentiles(float(first.mean() / second.mean()), first[chosen].mean(axis=1) / below, level)


def of_statistic(
    statistic: Statistic, num_people: int, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate any statistic of people or images that are resampled whole.

    Args:
        statistic: (R, P) indices of the resampled people -> (R,), finite.
        num_people: P.
        resamples: number of values behind the percentiles.
        level: fraction of them inside the interval, in (0, 1).
        seed: decides who is resampled; use the same for estimates to compare.
    """
    mean = float(statistic(np.arange(num_people)[None])[0])
    return _percentiles(mean, statistic(_resampled(num_people, resamples, seed)), level)


def _column(values: Values) -> npt.NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or column.size == 0:
        raise ValueError(f"a bootstrap over people takes one number a person, got an array of shape {column.shape}")
    if not np.isfinite(column).all():
        raise ValueError(f"a bootstrap takes finite numbers, got {column[~np.isfinite(column)][0]}")
    return column


def _paired(values: Values, others: Values) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    first, second = _column(values), _column(others)
    if len(first) != len(second):
        raise ValueError(f"paired values have the same people, got {len(first)} and {len(second)}")
    return first, second


def _resampled(num_people: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(num_people, size=(resamples, num_people))


def _percentiles(mean: float, means: npt.NDArray[np.float64], level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level is a fraction between 0 and 1, got {level}")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))
