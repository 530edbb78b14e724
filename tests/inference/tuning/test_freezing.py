import pytest
import torch
from torch import nn

from promptnet.inference.tuning.customize import frozen


def state(network: nn.Module) -> tuple[list[bool], list[bool]]:
    return [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_modes_and_flags_come_back_one_by_one(error):
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)).train()
    network[1].eval()
    network[2].weight.requires_grad_(False)  # type: ignore[union-attr]
    before = state(network)
    try:
        with frozen([network]):
            modes, flags = state(network)
            assert not any(modes)
            assert not any(flags)
            if error:
                raise error
    except RuntimeError:
        assert error
    assert state(network) == before


def test_gradients_that_were_there_stay():
    network = nn.Linear(2, 2)
    network(torch.ones(1, 2)).sum().backward()
    assert network.weight.grad is not None
    gradient = network.weight.grad.clone()
    with frozen([network]):
        x = torch.ones(1, 2, requires_grad=True)
        network(x).sum().backward()
    assert torch.equal(network.weight.grad, gradient)
