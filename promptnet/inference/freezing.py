"""Networks that are only looked through: nothing about them is different afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(networks: Sequence[nn.Module]) -> Iterator[None]:
    """For the length of the block, the networks are in evaluation mode and none of their weights wants a gradient.

    Afterwards, errors included, every module's mode and every weight's flag is what it was.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    flags = [(weight, weight.requires_grad) for network in networks for weight in network.parameters()]
    try:
        for network in networks:
            network.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, requires_grad in flags:
            weight.requires_grad_(requires_grad)
