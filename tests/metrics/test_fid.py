"""FID and the unpaired KID against values that are known without them."""

import numpy as np
import pytest

from promptnet.metrics.fid import fid, frechet_distance
from promptnet.metrics.kid import unpaired_kid


def gaussian(mean: list[float], covariance: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(mean), np.array(covariance)


def test_a_set_has_no_distance_to_itself():
    features = np.random.default_rng(0).normal(size=(5, 8))  # fewer images than features: a singular covariance
    assert fid(features, features) == pytest.approx(0, abs=1e-10)
    assert fid(features, features[::-1]) == pytest.approx(0, abs=1e-10)


def test_two_gaussians_with_known_means_and_covariances():
    one, two = gaussian([0, 0], [[4, 0], [0, 9]]), gaussian([3, 4], [[1, 0], [0, 1]])
    # |m|^2 = 25; commuting covariances: (2-1)^2 + (3-1)^2 = 5
    assert frechet_distance(*one, *two) == pytest.approx(30)


def test_covariances_that_do_not_commute():
    # tr (AB)^(1/2) of two 2x2 matrices is sqrt(tr AB + 2 sqrt(det AB))
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[5.0, 0.0], [0.0, 1.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected)
    assert frechet_distance(np.zeros(2), b, np.zeros(2), a) == pytest.approx(expected)


def test_fid_of_features_is_that_of_their_moments():
    rng = np.random.default_rng(1)
    one, two = rng.normal(size=(40, 3)), 2 * rng.normal(size=(30, 3)) + 1
    parts = one.mean(0), np.cov(one.T), two.mean(0), np.cov(two.T)
    assert fid(one, two) == pytest.approx(frechet_distance(*parts))
    assert fid(one, one + 2) == pytest.approx(3 * 4)  # a shift alone


def test_kid_by_hand():
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [1.0], [3.0]])

    def k(a: float, b: float) -> float:
        return (a * b + 1) ** 3

    own = k(1, 2)  # the only pair of x
    others = (k(0, 1) + k(0, 3) + k(1, 3)) / 3
    cross = sum(k(a, b) for a in (1, 2) for b in (0, 1, 3)) / 6
    assert unpaired_kid(x, y) == pytest.approx(own + others - 2 * cross)


def test_kid_is_unbiased():
    rng = np.random.default_rng(2)
    found = [unpaired_kid(rng.normal(size=(6, 4)), rng.normal(size=(9, 4))) for _ in range(3000)]
    assert abs(np.mean(found)) < 4 * np.std(found) / len(found) ** 0.5
    assert min(found) < 0  # as an estimate without bias must be


def test_kid_in_parts_is_kid_at_once(monkeypatch):
    from promptnet.metrics import kid

    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(7, 4)), rng.normal(size=(5, 4))
    whole = unpaired_kid(one, two)
    monkeypatch.setattr(kid, "_kernel_sum", lambda a, b, sum_of=kid._kernel_sum: sum_of(a, b, rows=2))
    assert unpaired_kid(one, two) == pytest.approx(whole)


@pytest.mark.parametrize("measure", [fid, unpaired_kid])
def test_what_cannot_be_compared_is_said(measure):
    good = np.ones((3, 2))
    for bad in (np.ones((1, 2)), np.ones((3, 4)), np.ones(3)):
        with pytest.raises(ValueError, match="two images at least"):
            measure(good, bad)
    with pytest.raises(ValueError, match="finite"):
        measure(good, np.full((3, 2), np.nan))
