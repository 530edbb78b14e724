"""Re-dilation: a convolution whose kernel covers more of a larger image, or less of a smaller one."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Factor = float | Sequence[float]


def factor_pair(factor: Factor) -> tuple[float, float]:
    """(vertical, horizontal) factors, from one number for both or a pair.

    Raises:
        ValueError: a factor is not a finite number above 0.
    """
    pair = tuple(float(f) for f in factor) if isinstance(factor, Sequence) else (float(factor),) * 2
    if len(pair) != 2 or not all(math.isfinite(f) and f > 0 for f in pair):
        raise ValueError(
            f"A re-dilation factor is a finite number above 0, or a pair of them for height and width, not {factor!r}."
        )
    return pair


def redilated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    factor: Factor,
    stride: int | Sequence[int] = 1,
    match_plain_size: bool = True,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """A "same"-padded convolution dilated by any real factor f, ScaleCrafter, arXiv 2310.07702 section 3.2.

    With d = ceil(f) and rho = d / f: resize the input by rho (bilinear, half-pixel centres, sizes rounded half to
    even), convolve with dilation d and padding d (k-1)/2, resize to the size of the plain layer's output. A direction
    whose factor is whole is never resized.

    Args:
        x: (B, C, H, W).
        weight: (C_out, C / groups, k, k) with odd k.
        bias: (C_out,).
        factor: f > 0 for both directions, or (vertical, horizontal).
        stride: of the plain layer.
        match_plain_size: the output is as large as the plain layer's, ceil(H / s); if not, floor(H / s) as published,
            which is one short on odd sizes with stride 2.
        groups: of the plain layer.
        padding_mode: of the plain layer. "circular" also resizes as if the image went on at its other side.

    Returns:
        (B, C_out, H', W').

    Raises:
        ValueError: a factor is not above 0, or the kernel has an even side.
    """
    factors = factor_pair(factor)
    kernel: tuple[int, ...] = tuple(weight.shape[2:])
    if any(side % 2 == 0 for side in kernel):
        raise ValueError(f"Re-dilation needs a kernel with odd sides, not {kernel[0]}x{kernel[1]}.")
    strides: tuple[int, ...] = (stride, stride) if isinstance(stride, int) else tuple(stride)
    sides: tuple[int, ...] = tuple(x.shape[2:])
    dilations = [math.ceil(f) for f in factors]
    resized = [max(1, round(n * d / f)) for n, d, f in zip(sides, dilations, factors, strict=True)]
    rounding = (lambda n, s: -(-n // s)) if match_plain_size else (lambda n, s: max(1, n // s))
    wanted = [rounding(n, s) for n, s in zip(sides, strides, strict=True)]
    padding = [d * (k - 1) // 2 for d, k in zip(dilations, kernel, strict=True)]
    is_circular = padding_mode == "circular"
    x = _resize(x, resized, is_circular)  # (B, C, rho H, rho W)
    if padding_mode != "zeros":
        x, padding = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), mode=padding_mode), [0, 0]
    x = F.conv2d(x, weight, bias, strides, padding, dilations, groups)  # (B, C_out, rho H / s, rho W / s)
    return _resize(x, wanted, is_circular)


def _resize(x: Tensor, sides: Sequence[int], is_circular: bool) -> Tensor:
    if tuple(x.shape[2:]) == tuple(sides):
        return x
    if is_circular:
        return _resize_around(_resize_around(x, sides[0], -2), sides[1], -1)
    return F.interpolate(x, size=tuple(sides), mode="bilinear", align_corners=False)


def _resize_around(x: Tensor, side: int, dim: int) -> Tensor:
    """Linear with half-pixel centres along one side, whose ends are neighbours."""
    given = x.shape[dim]
    if given == side:
        return x
    places = (torch.arange(side, device=x.device, dtype=torch.float32) + 0.5) * (given / side) - 0.5
    before = places.floor()
    share = (places - before).to(x.dtype).view(-1, *[1] * (-dim - 1))
    first, second = (x.index_select(dim, index.long() % given) for index in (before, before + 1))
    return torch.lerp(first, second, share)
