"""Muon's steps, and where Adam steps in."""

import pytest
import torch
from torch import nn

from promptnet.training.muon import Muon, is_orthogonalizable, orthogonalized
from promptnet.training.stage import build_optimizer


@pytest.mark.parametrize("shape", [(24, 24), (20, 70), (70, 20)])
def test_orthogonalized_matrices_have_singular_values_of_about_one(shape: tuple[int, int]):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_iterating_on_the_gram_matrix_is_iterating_on_the_matrix():
    torch.manual_seed(0)
    matrix = torch.randn(20, 50)
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    assert torch.allclose(orthogonalized(matrix), x, atol=1e-4)


def test_small_matrices_and_vectors_are_left_to_adam():
    assert is_orthogonalizable(torch.zeros(16, 4, 3, 3))
    assert not is_orthogonalizable(torch.zeros(8, 64))
    assert not is_orthogonalizable(torch.zeros(64))


def test_adams_part_is_adam():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    optimizers = [
        Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.99)),
        torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1),
    ]
    for _ in range(20):
        gradient = torch.randn(5)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_only_the_first_group_is_orthogonalized_and_it_learns():
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    optimizer = build_optimizer("muon", [{"params": [layer.weight]}, {"params": [layer.bias]}], 0.01, (0.9, 0.99))
    assert [group["orthogonalize"] for group in optimizer.param_groups] == [True, False]
    inputs, goal = torch.randn(64, 32), torch.randn(64, 32)
    losses = []
    for _ in range(60):
        loss = (layer(inputs) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert set(optimizer.state[layer.weight]) == {"momentum"}
