"""Kernel distance between two sets of images in a judge's feature space (KID, arXiv 1801.01401), without bias.

The squared maximum mean discrepancy of paired samples x_1..x_n and y_1..y_n (Gretton et al. 2012, lemma 6):

    1 / (n (n-1)) sum_{i != j} h_ij,   h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

with k(a, b) = (a.b / F + 1)^3. It is 0 on average if both come from one distribution, so it may be negative. Both sets
have the same prompts in the same order, and pairs of one prompt are left out of the sum, so that their similarity does
not make the distance smaller.

`unpaired_kid` is for sets that do not belong together image by image, such as generated and real images, of any sizes:
the unbiased estimate of the same distance (lemma 6 there),

    sum_{i != j} k(x_i, x_j) / (n (n-1)) + sum_{i != j} k(y_i, y_j) / (m (m-1)) - 2 sum_ij k(x_i, y_j) / (n m)
"""

import numpy as np
import numpy.typing as npt

from promptnet.metrics.bootstrap import Interval
from promptnet.metrics.fid import check_features

Array = npt.NDArray[np.float64]


def polynomial_kernel(x: Array, y: Array) -> Array:
    """Return k(a, b) = (a.b / F + 1)^3, (N, F), (M, F) -> (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def pair_distances(features: Array, others: Array) -> Array:
    """Return h, (N, F), (N, F) -> (N, N).

    Raises:
        ValueError: not two sets of equally many features, two at least.
    """
    if features.shape != others.shape or features.ndim != 2 or len(features) < 2:
        raise ValueError(f"KID compares two sets of equally many features, got {features.shape} and {others.shape}")
    cross = polynomial_kernel(features, others)
    return polynomial_kernel(features, features) + polynomial_kernel(others, others) - cross - cross.T


def kid(features: Array, others: Array) -> float:
    """Return the distance of two sets of features, (N, F) each."""
    h = pair_distances(features, others)
    return float(_weighted(h, np.ones((1, len(h))))[0])


def unpaired_kid(features: Array, others: Array) -> float:
    """Return the distance of two sets of features, (N, F) and (M, F), without bias.

    Raises:
        ValueError: a set has fewer than two features or some that are not finite, or the sets differ in width.
    """
    check_features("KID", features, others)
    cross = _kernel_sum(features, others) / (len(features) * len(others))
    return _mean_of_others(features) + _mean_of_others(others) - 2 * cross


def _mean_of_others(features: Array) -> float:
    """Return the mean of k(x_i, x_j) over i != j."""
    own = float(((np.square(features).sum(axis=1) / features.shape[1] + 1) ** 3).sum())
    return (_kernel_sum(features, features) - own) / (len(features) * (len(features) - 1))


def _kernel_sum(features: Array, others: Array, rows: int = 1024) -> float:
    """Return the sum of the kernel over all pairs, some rows at a time: thousands of images are no matrix in memory."""
    return sum(
        float(polynomial_kernel(features[start : start + rows], others).sum())
        for start in range(0, len(features), rows)
    )


def kid_resampled(features: Array, others: Array, *, resamples: int = 2_000, seed: int = 0) -> Array:
    """Return the distance over resampled prompts, (resamples,); a seed resamples every method's prompts alike.

    A prompt that was resampled twice never pairs with itself, so resampling adds no bias.
    """
    h = pair_distances(features, others)
    counts = np.random.default_rng(seed).multinomial(len(h), np.full(len(h), 1 / len(h)), size=resamples)
    return _weighted(h, counts.astype(np.float64))


def kid_interval(features: Array, others: Array, *, level: float = 0.95) -> Interval:
    """Return the distance with its bootstrap interval over prompts."""
    return _percentiles(kid(features, others), kid_resampled(features, others), level)


def kid_difference(features: Array, rivals: Array, others: Array, *, level: float = 0.95) -> Interval:
    """Return kid(features, others) - kid(rivals, others), prompts resampled together."""
    resampled = kid_resampled(features, others) - kid_resampled(rivals, others)
    return _percentiles(kid(features, others) - kid(rivals, others), resampled, level)


def _weighted(h: Array, counts: Array) -> Array:
    """Return the mean of h over pairs of different prompts, weighted by counts: (N, N), (R, N) -> (R,)."""
    squares = counts**2
    sums = ((counts @ h) * counts).sum(axis=1) - squares @ np.diag(h)
    return sums / np.maximum(counts.sum(axis=1) ** 2 - squares.sum(axis=1), 1)


def _percentiles(mean: float, resampled: Array, level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))
