from typing import Any

import pytest
import torch
import torch.nn.functional as F

from promptnet.inference.resolution.dispersion import (
    DispersedKernels,
    dispersed_kernel,
    dispersion_matrix,
    transform_matrix,
)


def test_the_published_matrix_is_solved() -> None:
    matrix = dispersion_matrix()
    assert matrix.shape == (25, 9)
    assert matrix.dtype == torch.float64
    assert matrix[0, 0].item() == pytest.approx(0.648789908, abs=5e-10)
    assert matrix[7, 1].item() == pytest.approx(0.360477258, abs=5e-10)
    assert matrix[12, 4].item() == pytest.approx(1, abs=1e-12)
    assert matrix.sum().item() == pytest.approx(9.752296481, abs=5e-10)


@pytest.mark.parametrize(
    ("name", "first", "other", "centre", "total"),
    [  # entries [0, 0], [7, 1], [12, 4] and the sum of the published files
        ("R20to1", 0.8026859649964506, -0.5312231085028711, 0.018892659627202435, 8.985216694506297),
        ("R2to1", 0.6859922481913373, -0.5841497339138848, -0.10943396226415095, 7.635849056603773),
    ],
)
def test_older_published_matrices(name, first: float, other: float, centre: float, total: float) -> None:
    matrix = transform_matrix(name)
    found = [matrix[0, 0].item(), matrix[7, 1].item(), matrix[12, 4].item(), matrix.sum().item()]
    assert found == pytest.approx([first, other, centre, total], abs=1e-12)


def test_it_minimises_the_two_errors() -> None:
    """The gradient of the least squares, written with convolutions, vanishes at R."""
    small = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    large = dispersed_kernel(small, dispersion_matrix()).requires_grad_()
    x = torch.eye(9, dtype=torch.float64).reshape(9, 1, 3, 3)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=(5, 5), mode="bilinear", align_corners=True)

    output = F.conv2d(x, small, padding=1)
    structure = F.conv2d(enlarged(x), large, padding=2) - enlarged(output)
    pixel = F.conv2d(x, large, padding=2) - output
    (gradient,) = torch.autograd.grad(structure.square().sum() + 0.05**2 * pixel.square().sum(), large)
    assert gradient.abs().max() < 1e-12
    assert structure.abs().max() > 1e-3  # and it is no trivial optimum


def test_other_sizes() -> None:
    assert dispersion_matrix(3, 7, input_size=5, scale=3).shape == (49, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"small": 2}, "small=2"), ({"large": 4}, "large=4"), ({"input_size": 1}, "input_size=1"), ({"eta": -1}, "eta")]
    + [({"scale": 0}, "scale=0"), ({"large": 9, "input_size": 2}, "do not determine")],
)
def test_what_cannot_be_solved_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dispersion_matrix(**options)


def test_unknown_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="R20to1"):
        transform_matrix("R3to1")  # type: ignore[arg-type]


def test_kernels_are_computed_once_for_each_weight_and_dtype() -> None:
    kernels, weight = DispersedKernels(), torch.randn(2, 3, 3, 3)
    first = kernels(weight)
    assert first.shape == (2, 3, 5, 5)
    assert kernels(weight) is first
    assert kernels(weight.half()).dtype == torch.float16


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.add_(1),
        lambda w: w.data.add_(1),
        lambda w: w.data.copy_(w.flip(0)),
        lambda w: w.data.copy_(w.flip(1)),
        lambda w: w.data.neg_(),
    ],
)
def test_kernels_are_computed_again_when_the_weight_has_changed(change: Any) -> None:
    """Also behind autograd's back, which is how adapters are fused."""
    kernels, weight = DispersedKernels(), torch.randn(2, 3, 3, 3)
    kernels(weight)
    change(weight)
    assert torch.equal(kernels(weight), DispersedKernels()(weight))


def test_kernels_carry_gradients_to_their_weights() -> None:
    weight = torch.randn(1, 1, 3, 3, requires_grad=True)
    assert DispersedKernels()(weight).requires_grad


def test_kernels_made_in_inference_mode_serve_training() -> None:
    kernels, weight = DispersedKernels(), torch.randn(1, 1, 3, 3)
    with torch.inference_mode():
        kernels(weight)
    x = torch.randn(1, 1, 5, 5, requires_grad=True)
    F.conv2d(x, kernels(weight)).sum().backward()
    assert x.grad is not None
