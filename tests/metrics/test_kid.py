import numpy as np
import pytest

from promptnet.metrics.kid import kid, kid_difference, kid_interval, kid_resampled, polynomial_kernel


def normal(seed: int, count: int = 40, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, size=(count, 6))


def test_it_is_the_sum_over_pairs() -> None:
    x, y = normal(0, 5), normal(1, 5)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 6 + 1) ** 3)

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    by_hand = sum(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs) / 20
    assert kid(x, y) == pytest.approx(by_hand)
    assert polynomial_kernel(x, y)[1, 2] == pytest.approx(k(x[1], y[2]))


def test_no_bias_where_both_are_of_one_distribution() -> None:
    found = [kid(normal(seed, 10), normal(1000 + seed, 10)) for seed in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20
    paired = [kid(x, x + 0.01 * normal(seed, 10)) for seed in range(400) for x in [normal(500 + seed, 10)]]
    assert abs(np.mean(paired)) < 1e-2  # alike pairs do not make it negative


def test_resampling_is_centred_and_finds_a_shift() -> None:
    x, y, far = normal(0), normal(1), normal(2, shift=1.0)
    assert kid_resampled(x, y).mean() == pytest.approx(kid(x, y), abs=0.05)
    assert kid_interval(x, y).low < 0 < kid_interval(x, y).high
    assert kid_interval(far, y).low > 0
    closer = kid_difference(x, far, y)
    assert closer.high < 0
    assert closer.mean == pytest.approx(kid(x, y) - kid(far, y))


def test_sets_must_match() -> None:
    for x, y in ((normal(0, 4), normal(1, 5)), (normal(0, 1), normal(1, 1))):
        with pytest.raises(ValueError, match="equally many"):
            kid(x, y)
