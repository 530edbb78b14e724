import numpy as np
import pytest

from promptnet.metrics.bootstrap import Interval, difference, interval, ratio


def test_constant_people_have_an_interval_of_no_width():
    assert interval([0.5] * 7) == Interval(0.5, 0.5, 0.5)


def test_a_seed_repeats_the_interval_and_another_moves_it():
    values = np.random.default_rng(1).random(20)
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3).low != interval(values, seed=4).low


def test_interval_agrees_with_the_binomial():
    # 32 of 64 people: resampled means are binomial(64, 1/2) / 64, whose 2.5 % and 97.5 % quantiles are 24/64 and 40/64
    found = interval([0.0, 1.0] * 32, resamples=50_000)
    assert found.mean == 0.5
    assert found.low == pytest.approx(24 / 64, abs=1 / 64)
    assert found.high == pytest.approx(40 / 64, abs=1 / 64)


def test_a_higher_level_is_wider():
    values = np.random.default_rng(2).random(30)
    wide, narrow = interval(values, level=0.99), interval(values, level=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_coverage_is_near_the_level():
    rng = np.random.default_rng(5)
    found = [interval(rng.normal(size=40), resamples=400, seed=index) for index in range(300)]
    covered = np.mean([each.low < 0 < each.high for each in found])
    assert 0.89 < covered < 0.98


def test_differences_are_paired():
    people = np.random.default_rng(3).random(30)
    shifted = people + 0.1
    assert not interval(shifted).above(interval(people))
    found = difference(shifted, people)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_ratios_are_paired():
    people = np.random.default_rng(4).random(30) + 0.5
    found = ratio(0.9 * people, people)
    assert (found.mean, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))


def test_ratio_is_of_means_not_the_mean_of_ratios():
    assert ratio([1.0, 3.0], [1.0, 1.0], resamples=10).mean == 2.0
    assert ratio([1.0, 1.0], [1.0, 3.0], resamples=10).mean == 0.5


def test_above_means_intervals_apart():
    assert Interval(0.8, 0.7, 0.9).above(Interval(0.6, 0.5, 0.69))
    assert not Interval(0.8, 0.7, 0.9).above(Interval(0.6, 0.5, 0.7))


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_is_not_one_finite_number_a_person_raises(values: list):
    with pytest.raises(ValueError, match="bootstrap"):
        interval(values)


def test_unequal_people_levels_and_ratios_below_zero_raise():
    with pytest.raises(ValueError, match="same people, got 2 and 3"):
        difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="level is a fraction"):
        interval([1, 2], level=95)
    with pytest.raises(ValueError, match="positive mean"):
        ratio([1, 2], [0, 0])
