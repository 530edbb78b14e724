"""E4T's weight offsets (Gal et al., arXiv 2302.12228, section 4.2): W' = W * (1 + D), element by element.

D (d_out, d_in) is made from one number v: two linear maps of v give a column x (d_out) and a row y (d_in), and one
linear map over each side mixes their outer product,

    D = M_out(M_in(x y^T)),    x = a v + b,    y = c v + d.

Here the last map starts at zero, so that offsets start by changing nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptnet.inference.subject.lora import LoRALayer
from promptnet.models.slots import asking, slot_of


class WeightOffset(nn.Module):
    """The offset D of one linear layer.

    Args:
        d_out: of the layer.
        d_in: of the layer.
    """

    def __init__(self, d_out: int, d_in: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.ones(1))
        self.column, self.row = nn.Linear(1, d_out), nn.Linear(1, d_in)
        self.mix_in, self.mix_out = nn.Linear(d_in, d_in), nn.Linear(d_out, d_out)
        nn.init.zeros_(self.mix_out.weight)
        nn.init.zeros_(self.mix_out.bias)

    def forward(self) -> Tensor:
        """Return D, (d_out, d_in)."""
        outer = self.column(self.v)[:, None] * self.row(self.v)[None, :]  # (d_out, d_in)
        return self.mix_out(self.mix_in(outer).mT).mT


class WeightOffsets(nn.Module):
    """The offsets of several linear layers.

    Args:
        layers: by name.

    Raises:
        ValueError: a layer is not linear.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(layers)
        offsets = []
        for name, layer in layers.items():
            if not isinstance(layer, nn.Linear):
                raise ValueError(f"{name} is a {type(layer).__name__}: weight offsets are for Linear layers.")
            offsets.append(WeightOffset(layer.out_features, layer.in_features))
        self.offsets = nn.ModuleList(offsets)

    @contextmanager
    def acting(self, network: nn.Module) -> Iterator[None]:
        """For the length of the block, in this thread, the network's layers have the weights W * (1 + D)."""
        actions = {}
        for name, offset in zip(self.names, self.offsets, strict=True):
            layer = network.get_submodule(name)
            actions[slot_of(layer).places[0].key] = _Changed(layer.get_parameter("weight") * offset())
        with asking(actions):
            yield

    @torch.no_grad()
    def loras(self, network: nn.Module, rank: int = 0) -> dict[str, LoRALayer]:
        """Return W * D of every layer as a LoRA layer.

        Args:
            network: with the layers.
            rank: at most this of each, by its largest singular values; 0 keeps all, exactly.
        """
        named = zip(self.names, self.offsets, strict=True)
        return {name: as_lora(network.get_submodule(name).get_parameter("weight") * o(), rank) for name, o in named}


class _Changed:
    """What a layer does in this call: it adds x (W * D)^T to its output."""

    def __init__(self, change: Tensor) -> None:
        self.change = change

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + F.linear(args[0], self.change.to(args[0])).to(output.dtype)


def as_lora(change: Tensor, rank: int = 0) -> LoRALayer:
    """Return a change of a weight (d_out, d_in) as B A: exactly with rank 0, else the nearest of this rank."""
    d_out, d_in = change.shape
    if not 0 < rank < min(d_out, d_in):
        eye = torch.eye(min(d_out, d_in), device=change.device, dtype=change.dtype)
        return LoRALayer(eye, change.clone()) if d_in <= d_out else LoRALayer(change.clone(), eye)
    U, S, V = torch.linalg.svd(change.float(), full_matrices=False)
    roots = S[:rank].sqrt()
    return LoRALayer(roots[:, None] * V[:rank], U[:, :rank] * roots)
