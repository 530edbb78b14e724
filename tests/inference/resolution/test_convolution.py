import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from promptnet.inference.resolution.convolution import factor_pair, redilated_conv2d


def resize_matrix(size: int, wanted: int) -> np.ndarray:
    """Bilinear with half-pixel centres, (wanted, size)."""
    matrix = np.zeros((wanted, size))
    for row in range(wanted):
        place = min(max((row + 0.5) * size / wanted - 0.5, 0), size - 1)
        lower = math.floor(place)
        matrix[row, lower] += 1 - (place - lower)
        matrix[row, min(lower + 1, size - 1)] += place - lower
    return matrix


def naive(x: np.ndarray, weight: np.ndarray, factors: tuple[float, float], stride: int, plain: bool) -> np.ndarray:
    """Re-dilation of one image with loops: (C, H, W) -> (C_out, H', W')."""
    _, height, width = x.shape
    d = [math.ceil(f) for f in factors]
    rho = [di / f for di, f in zip(d, factors, strict=True)]
    sides = [max(1, round(n * r)) for n, r in zip((height, width), rho, strict=True)]
    x = np.einsum("ih,jw,chw->cij", resize_matrix(height, sides[0]), resize_matrix(width, sides[1]), x)
    rows, columns = range(0, sides[0], stride), range(0, sides[1], stride)
    y = np.zeros((len(weight), len(rows), len(columns)))
    for a, i in enumerate(rows):
        for b, j in enumerate(columns):
            for u in range(3):
                for v in range(3):
                    p, q = i + (u - 1) * d[0], j + (v - 1) * d[1]
                    if 0 <= p < sides[0] and 0 <= q < sides[1]:
                        y[:, a, b] += weight[:, :, u, v] @ x[:, p, q]
    wanted = [math.ceil(n / stride) if plain else n // stride for n in (height, width)]
    return np.einsum("ih,jw,chw->cij", resize_matrix(len(rows), wanted[0]), resize_matrix(len(columns), wanted[1]), y)


factors = st.floats(0.3, 4.5, allow_nan=False) | st.integers(1, 4).map(float)


@settings(max_examples=60, deadline=None)
@given(factors, factors, st.integers(2, 9), st.integers(2, 9), st.sampled_from([1, 2]), st.booleans())
def test_it_is_the_formula(f: float, g: float, height: int, width: int, stride: int, plain: bool) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(size=(2, height, width)), rng.normal(size=(3, 2, 3, 3)), rng.normal(size=3)
    x_t, weight_t, bias_t = torch.from_numpy(x)[None], torch.from_numpy(weight), torch.from_numpy(bias)
    y = redilated_conv2d(x_t, weight_t, bias_t, factor=(f, g), stride=stride, match_plain_size=plain)
    expected = naive(x, weight, (f, g), stride, plain) + bias[:, None, None]
    np.testing.assert_allclose(y[0].numpy(), expected, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(factors, st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2]))
def test_the_size_is_that_of_the_plain_layer(f: float, height: int, width: int, stride: int) -> None:
    x, weight = torch.ones(1, 1, height, width), torch.ones(1, 1, 3, 3)
    plain = F.conv2d(x, weight, stride=stride, padding=1)
    assert redilated_conv2d(x, weight, factor=f, stride=stride).shape == plain.shape


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_whole_factors_are_dilations_and_nothing_is_resized(factor: int, stride: int, monkeypatch) -> None:
    x, weight, bias = torch.randn(2, 3, 9, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    monkeypatch.setattr(F, "interpolate", lambda *a, **k: pytest.fail("resized"))
    y = redilated_conv2d(x, weight, bias, factor=factor, stride=stride)
    assert torch.equal(y, F.conv2d(x, weight, bias, stride, factor, factor))


def test_published_sizes_are_one_short_on_odd_sides_with_stride_two() -> None:
    x, weight = torch.randn(1, 1, 9, 8), torch.randn(1, 1, 3, 3)
    assert redilated_conv2d(x, weight, factor=2, stride=2).shape[2:] == (5, 4)
    assert redilated_conv2d(x, weight, factor=2, stride=2, match_plain_size=False).shape[2:] == (4, 4)


def test_a_direction_with_factor_one_is_left_alone() -> None:
    """An image that is constant from top to bottom gives the same as with the horizontal factor alone."""
    x = torch.randn(1, 1, 1, 12, dtype=torch.float64).expand(1, 1, 6, 12)
    weight = torch.randn(1, 1, 1, 3, dtype=torch.float64)
    wide = redilated_conv2d(x, weight, factor=(1, 2))
    assert torch.equal(wide, F.conv2d(x, weight, padding=(0, 2), dilation=(1, 2)))


def test_it_is_differentiable() -> None:
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: redilated_conv2d(x, w, factor=1.5), (x, weight))


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), (1, 2, 3), (1, 0)])
def test_impossible_factors_are_refused_by_value(factor) -> None:
    with pytest.raises(ValueError, match="above 0"):
        factor_pair(factor)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="2x2"):
        redilated_conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2), factor=2)
