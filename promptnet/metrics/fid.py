"""Fréchet distance between two sets of images in a network's feature space (FID, Heusel et al., arXiv 1706.08500).

With means m and covariances C of two sets of features,

    FID = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))                                          (equation 6)

The eigenvalues of C_1 C_2 are those of the symmetric C_1^(1/2) C_2 C_1^(1/2), which keeps the root real however few
images there are. All of it is in float64. The estimate is biased upwards for few images: compare figures of equally
many images, of one network and one way of resizing only.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def frechet_distance(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """Return the distance of two Gaussians, (F,), (F, F), (F,), (F, F)."""
    root = _root(covariance)
    product = np.linalg.eigvalsh(root @ other_covariance @ root)  # (F,)
    shift = float(np.square(mean - other_mean).sum())
    spread = float(np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(np.maximum(product, 0)).sum())
    return max(shift + spread, 0.0)  # rounding must not go below 0


def fid(features: Array, others: Array) -> float:
    """Return the distance of two sets of features, (N, F) and (M, F).

    Raises:
        ValueError: a set has fewer than two features or some that are not finite, or the sets differ in width.
    """
    check_features("FID", features, others)
    return frechet_distance(*moments(features), *moments(others))


def moments(features: Array) -> tuple[Array, Array]:
    """Return mean (F,) and unbiased covariance (F, F) of features (N, F)."""
    return features.mean(axis=0), np.cov(features, rowvar=False).reshape(features.shape[1], features.shape[1])


def check_features(name: str, features: Array, others: Array) -> None:
    """Check two sets of features.

    Raises:
        ValueError: see `fid`.
    """
    if (
        features.ndim != 2
        or others.ndim != 2
        or features.shape[1] != others.shape[1]
        or min(map(len, (features, others))) < 2
    ):
        raise ValueError(
            f"{name} compares two sets of features of one width, two images at least in each, got {features.shape} and "
            f"{others.shape}"
        )
    if not (np.isfinite(features).all() and np.isfinite(others).all()):
        raise ValueError(f"{name} takes finite features: the network gave some that are not")


def _root(covariance: Array) -> Array:
    """Return the symmetric root of a covariance (F, F)."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
