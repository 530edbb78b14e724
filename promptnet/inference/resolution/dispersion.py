"""Dispersion: a small kernel becomes a larger one that does on the enlarged image what it did on the image.

The map is linear in the kernel and does not depend on it, so it is one matrix, solved here by least squares.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

Transform = Literal["solved", "R20to1", "R2to1"]


def dispersion_matrix(small: int = 3, large: int = 5, input_size: int = 3, scale: int = 2, eta: float = 0.05) -> Tensor:
    """R, the least squares of [structure; eta pixel], arXiv 2310.07702 section 3.3 and its supplement.

    Structure: the large kernel on the bilinearly enlarged input gives the enlarged output of the small kernel. Pixel:
    the large kernel on the input gives the small kernel's output. n points a side become scale (n-1) + 1, corners
    aligned; inputs are n x n, zero padding; each output sample of each basis input is an equation.

    Args:
        small: odd side of the given kernel.
        large: odd side of the wanted kernel.
        input_size: n.
        scale: how many times larger the image is.
        eta: weight of the pixel equations.

    Returns:
        (large^2, small^2) in float64: large kernel = R @ small kernel, both row-major.

    Raises:
        ValueError: an argument is out of range, or the equations do not determine the large kernel.
    """
    _check(small, large, input_size, scale, eta)
    return _solve(small, large, input_size, scale, eta, lambda n, reach: range(n), pixel_sign=1.0)


def _check(small: int, large: int, input_size: int, scale: int, eta: float) -> None:
    for name, side in (("small", small), ("large", large)):
        if side < 1 or side % 2 == 0:
            raise ValueError(f"{name}={side} must be an odd kernel side of at least 1.")
    if input_size < 2:
        raise ValueError(f"input_size={input_size} must be at least 2: one point has nothing to be enlarged.")
    if scale < 1:
        raise ValueError(f"scale={scale} must be a whole number of at least 1.")
    if not (math.isfinite(eta) and eta >= 0):
        raise ValueError(f"eta={eta} must be a finite number of at least 0.")


Samples = Callable[[int, int], range]  # (side, kernel's reach) -> which outputs along a side are equations


def _solve(
    small: int, large: int, input_size: int, scale: int, eta: float, samples: Samples, pixel_sign: float
) -> Tensor:
    enlarge = _enlarging(input_size, scale)  # (m, n)
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    for basis in torch.eye(input_size**2, dtype=torch.float64).reshape(-1, input_size, input_size):
        enlarged = enlarge @ basis @ enlarge.T  # (m, m)
        small_windows = _windows(basis, small)  # (n, n, small^2)
        enlarged_output = torch.einsum("ia,jb,abk->ijk", enlarge, enlarge, small_windows)  # (m, m, small^2)
        for windows, target, weight in (
            (_windows(enlarged, large), enlarged_output, 1.0),
            (_windows(basis, large), pixel_sign * small_windows, eta),
        ):
            kept = torch.tensor(list(samples(len(windows), large // 2)), dtype=torch.long)
            rows.append(weight * windows[kept][:, kept].reshape(-1, large**2))
            targets.append(weight * target[kept][:, kept].reshape(-1, small**2))
    equations = torch.cat(rows)  # (E, large^2)
    if torch.linalg.matrix_rank(equations) < large**2:
        raise ValueError(
            f"Inputs of {input_size}x{input_size} with scale={scale} and eta={eta} do not determine a kernel of "
            f"{large}x{large}: use a larger input_size, or eta above 0."
        )
    return torch.linalg.lstsq(equations, torch.cat(targets)).solution


def _enlarging(size: int, scale: int) -> Tensor:
    """Bilinear enlargement along one side with aligned corners, (scale (n-1) + 1, n)."""
    places = torch.arange(scale * (size - 1) + 1, dtype=torch.float64) / scale
    return (1 - (places[:, None] - torch.arange(size, dtype=torch.float64)).abs()).clamp_min(0)


def _windows(x: Tensor, side: int) -> Tensor:
    """What a kernel of this side sees at each place of x (h, w), zeros outside: (h, w, side^2)."""
    padded = torch.nn.functional.pad(x, (side // 2,) * 4)
    return padded.unfold(0, side, 1).unfold(1, side, 1).reshape(*x.shape, side**2)


@lru_cache
def transform_matrix(name: Transform = "solved") -> Tensor:
    """R for 3x3 to 5x5, (25, 9) in float64.

    "solved" is `dispersion_matrix()`, and the published R20to1_new to rounding. The two older published matrices are
    named after the ratio of the structure's weight to the pixels', eta = 1/20 and 1/2. They use the centre's output
    alone as equations, and their pixel target has the wrong sign; they are here for comparison.

    Raises:
        ValueError: there is no such matrix.
    """
    if name == "solved":
        return dispersion_matrix()
    older = {"R20to1": 1 / 20, "R2to1": 1 / 2}
    if name not in older:
        known = ", ".join(map(repr, get_args(Transform)))
        raise ValueError(f"There is no dispersion matrix {name!r}: there are {known}.")
    return _solve(3, 5, 5, 2, older[name], _centre, pixel_sign=-1.0)


def _centre(side: int, reach: int) -> range:
    return range(side // 2, side // 2 + 1)


def dispersed_kernel(weight: Tensor, matrix: Tensor, side: int | None = None) -> Tensor:
    """Kernels (C_out, C, k, k) times R, (C_out, C, K, K), computed in float32 at least.

    Args:
        weight: (C_out, C, k, k).
        matrix: R, (K^2, k^2).
        side: K, for compiled code, which knows no roots of sizes that may change.
    """
    precision = torch.promote_types(weight.dtype, torch.float32)
    side = math.isqrt(len(matrix)) if side is None else side
    large = weight.flatten(2).to(precision) @ matrix.to(weight.device, precision).mT
    return large.reshape(*weight.shape[:2], side, side).to(weight.dtype)


class DispersedKernels:
    """One layer's dispersed kernel, computed once for each weight and dtype, and again when the weight changes.

    Weights change without a trace (fusing adapters writes to `.data`), so marks of them are kept and compared: a copy
    would take as much memory as the layer. Compiled code computes the kernel in every call.

    Args:
        transform: the name of the matrix.
    """

    def __init__(self, transform: Transform = "solved") -> None:
        self.matrix = transform_matrix(transform)
        self.side = math.isqrt(len(self.matrix))
        self._known: tuple[tuple[Tensor, ...], Tensor] | None = None  # marks of the weight, and the kernel

    def __call__(self, weight: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and weight.requires_grad):
            return dispersed_kernel(weight, self.matrix, self.side)
        marks, known = _marks(weight), self._known
        if known is None or not all(map(_are_same, marks, known[0])):
            with torch.inference_mode(False), torch.no_grad():  # or a later backward pass could not use it
                known = self._known = marks, dispersed_kernel(weight, self.matrix)
        return known[1]


@torch.no_grad()
def _marks(weight: Tensor) -> tuple[Tensor, ...]:
    """What tells a weight (C_out, C, k, k) from another: hashes of its rows and columns.

    They are exclusive ors of bits, which do not see an even number of signs turn; the sums do.
    """
    return torch.hash_tensor(weight, dim=0), torch.hash_tensor(weight.flatten(1), dim=1), weight.sum(dim=0)


def _are_same(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)
