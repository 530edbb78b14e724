import copy
from typing import Any

import pytest
import torch
from torch import nn

from promptnet.inference.subject.lora import apply_loras, initial_loras
from promptnet.models.twins import frozen, twin


def state(network: nn.Module) -> tuple[list[bool], list[bool]]:
    return [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 2)).train()
    network[1].eval()
    network[3].weight.requires_grad_(False)  # type: ignore[union-attr]
    return network


def test_a_twin_is_frozen_and_its_network_is_as_it_was(network: nn.Sequential) -> None:
    before, own = state(network), frozen(network)
    assert own is not network
    modes, flags = state(own)
    assert not any(modes)
    assert not any(flags)
    assert state(network) == before
    x = torch.ones(1, 2, requires_grad=True)
    own(x).sum().backward()
    assert x.grad is not None
    assert all(weight.grad is None for weight in network.parameters())


def test_a_twins_weights_are_its_networks(network: nn.Sequential) -> None:
    own = twin(network)
    pairs = zip(own.state_dict().items(), network.state_dict().items(), strict=True)
    assert all(a == b and one.data_ptr() == other.data_ptr() for (a, one), (b, other) in pairs)
    assert torch.equal(own(torch.ones(3, 2)), copy.deepcopy(network).eval()(torch.ones(3, 2)))


def test_in_another_precision_they_are_copies(network: nn.Sequential) -> None:
    own = twin(network.half(), torch.float32)
    assert {weight.dtype for weight in own.parameters()} == {torch.float32}
    assert {weight.dtype for weight in network.parameters()} == {torch.float16}
    assert own[1].num_batches_tracked.dtype == torch.int64


def test_a_frozen_network_is_used_as_it_is(network: nn.Sequential) -> None:
    assert frozen(network.eval().requires_grad_(False)) is network
    assert frozen(network.requires_grad_(True), for_gradients=False) is network
    assert frozen(network) is not network
    assert frozen(network.train(), for_gradients=False) is not network


def test_hooks_of_others_are_called_and_what_is_asked_of_the_twin_is_not_asked_of_the_network(
    network: nn.Sequential,
) -> None:
    seen: list[Any] = []

    class Watcher:
        def __deepcopy__(self, memo: Any) -> None:
            raise AssertionError("a hook may hold anything")

        def note(self, module: nn.Module, *_: Any) -> None:
            seen.append(module)

    network[0].register_forward_hook(Watcher().note)
    own, x = twin(network), torch.ones(3, 2)
    loras = initial_loras({"3": network[3]}, 1)
    loras["3"].B.fill_(1)
    plain = twin(network)(x)
    with apply_loras(own, [loras] * 3):
        changed = own(x)
        assert torch.equal(twin(network)(x), plain)
    assert not torch.equal(changed, plain)
    assert seen[1] is own[0]
