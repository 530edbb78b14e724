"""Low-rank changes of single layers, as data: what tuning adds for one user while the networks stay shared.

A delta W + up @ down belongs to rows of a batch, not to a network. A call has, for each layer, stacks A (B, R, d_in)
and B (B, d_out, R) with zeros in rows that own none; the layer adds B (A x) to its output. Other rows are bit-identical
to the plain call, so one batch can hold many users, and terms without S* are the base model's own.

The stacks belong to the caller and travel with the call, in the context of its thread (`models/slots.py`): no layer
holds any. So one network serves calls of many threads, each with its own people. Compiled code has the stacks as inputs
of its graph, and is made once for each shape of them, not for each person.

Low-rank adaptation is arXiv 2106.09685; keys and values of cross-attention as what to tune is arXiv 2212.04488,
section 3.1.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from torch import Tensor, nn

from promptnet.models.slots import asking, slot_of

# A context entered for a network that then never runs the layers would draw the wrong person without a word.
_NEVER_RAN = (
    "Low-rank deltas were given for {names}, but the network never called these layers: its attention processor goes "
    "around them. Use a processor that calls attn.to_k and attn.to_v, such as diffusers' AttnProcessor2_0."
)


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """What is added to a layer's weight matrix: up @ down. A convolution's kernel counts as (d_out, C * kh * kw).

    Args:
        down: (r, d_in).
        up: (d_out, r).

    Raises:
        ValueError: the two do not fit together.
    """

    down: Tensor
    up: Tensor

    def __post_init__(self) -> None:
        if self.down.ndim != 2 or self.up.ndim != 2 or len(self.down) != self.up.shape[1] or not len(self.down):
            raise ValueError(
                "A low-rank delta is down (r, d_in) and up (d_out, r) with r >= 1, but got "
                f"{tuple(self.down.shape)} and {tuple(self.up.shape)}."
            )

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in), as of the weight that it is added to."""
        return self.up.shape[0], self.down.shape[1]

    def matrix(self) -> Tensor:
        """up @ down, (d_out, d_in)."""
        return self.up @ self.down

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "LowRankDelta":
        return LowRankDelta(self.down.to(device=device, dtype=dtype), self.up.to(device=device, dtype=dtype))


Deltas = Mapping[str, LowRankDelta]  # by the layer's name in its network


def summed(parts: Sequence[Deltas], weights: Sequence[float] | None = None) -> dict[str, LowRankDelta]:
    """The weighted sum of several deltas, exactly: ranks stand beside each other."""
    weights = [1.0] * len(parts) if weights is None else weights
    found: dict[str, list[tuple[float, LowRankDelta]]] = {}
    for weight, part in zip(weights, parts, strict=True):
        for name, delta in part.items():
            found.setdefault(name, []).append((weight, delta))
    return {
        name: LowRankDelta(torch.cat([d.down for _, d in terms]), torch.cat([w * d.up for w, d in terms], dim=1))
        for name, terms in found.items()
    }


# -- which layers -----------------------------------------------------------------------------------------------------


def key_value_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """The layers that turn the prompt's states into keys and values, by name: found from structure in any U-Net."""
    return {
        f"{name}.{part}": module.get_submodule(part)
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
        for part in ("to_k", "to_v")
    }


def word_layers(promptnet: nn.Module) -> dict[str, nn.Module]:
    """PromptNet's last linear map, into the space of words."""
    return {"region_prompt_output": promptnet.get_submodule("region_prompt_output")}


def initial_deltas(
    layers: Mapping[str, nn.Module], rank: int, generator: torch.Generator | None = None
) -> dict[str, LowRankDelta]:
    """Deltas that change nothing yet: `up` is 0, `down` is random with the root mean square of the layer's weights.

    So one step of `up` means the same relative change of the output in every layer.

    Args:
        layers: by name.
        rank: r.
        generator: a CPU generator.

    Raises:
        ValueError: the rank is not between 1 and what a layer can have.
    """
    deltas = {}
    for name, layer in layers.items():
        d_out, d_in = _matrix_shape(name, layer)
        if not 1 <= rank <= min(d_out, d_in):
            raise ValueError(f"rank={rank} must be between 1 and {min(d_out, d_in)}, the most that {name} can have.")
        weight = _base_layer(layer).get_parameter("weight").detach()
        scale = weight.float().square().mean().sqrt()
        down = torch.randn(rank, d_in, generator=generator).to(weight.device) * scale
        deltas[name] = LowRankDelta(down, torch.zeros(d_out, rank, device=weight.device))
    return deltas


def _base_layer(layer: nn.Module) -> nn.Module:
    """The layer itself, from inside a peft wrapper."""
    wrapped: Any = layer
    return wrapped.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def _matrix_shape(name: str, layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer or of a convolution's flattened kernel."""
    base = _base_layer(layer)
    if isinstance(base, nn.Linear):
        return base.out_features, base.in_features
    if isinstance(base, nn.Conv2d) and base.groups == 1 and isinstance(base.padding, tuple):
        return base.out_channels, base.in_channels * base.kernel_size[0] * base.kernel_size[1]
    raise ValueError(
        f"{name} is a {type(base).__name__}: only Linear and ungrouped Conv2d layers take low-rank deltas."
    )


# -- stacks -----------------------------------------------------------------------------------------------------------

Stacks = Mapping[str, tuple[Tensor, Tensor]]
"""By layer A (B, R, d_in) and B (B, d_out, R); or (R, d_in) and (d_out, R), the same in all rows."""


def stacked(row_deltas: Sequence[Deltas | None], rank: int | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """The deltas of a batch's rows as stacks, lower ranks and rows without a delta filled up with zeros.

    Args:
        row_deltas: for each row the deltas by layer, or None.
        rank: R, for stacks of one shape whoever is in the batch; None is the largest rank of a layer's deltas, and
            one delta in all rows stays one.

    Raises:
        ValueError: a delta has a larger rank.
    """
    count = len(row_deltas)
    return {name: _stack(name, rows, count, rank) for name, rows in _owners(row_deltas).items()}


def _owners(row_deltas: Sequence[Deltas | None]) -> dict[str, dict[int, LowRankDelta]]:
    """For each layer, which rows have which delta."""
    owners: dict[str, dict[int, LowRankDelta]] = {}
    for row, deltas in enumerate(row_deltas):
        for name, delta in (deltas or {}).items():
            owners.setdefault(name, {})[row] = delta
    return owners


def _stack(name: str, rows: Mapping[int, LowRankDelta], count: int, rank: int | None) -> tuple[Tensor, Tensor]:
    first, largest = next(iter(rows.values())), max(delta.rank for delta in rows.values())
    if rank is None and len(rows) == count and all(delta is first for delta in rows.values()):
        return first.down, first.up
    if rank is not None and largest > rank:
        raise ValueError(f"The low-rank delta for {name} has rank {largest}, more than rank={rank}.")
    rank = largest if rank is None else rank
    downs = [F.pad(delta.down, (0, 0, 0, rank - delta.rank)) for delta in rows.values()]
    ups = [F.pad(delta.up, (0, rank - delta.rank)) for delta in rows.values()]
    for others in {delta.shape for delta in rows.values()} - {first.shape}:
        raise ValueError(
            f"The low-rank deltas for {name} are {first.shape[0]}x{first.shape[1]} and {others[0]}x{others[1]}: they "
            "were made for different base models."
        )
    places = [list(rows).index(row) if row in rows else -1 for row in range(count)]
    return _with_zeros(downs, places), _with_zeros(ups, places)


def _with_zeros(matrices: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """(len(places), ...), zeros where a place is -1."""
    zeros = torch.zeros_like(matrices[0])
    return torch.stack([zeros if place < 0 else matrices[place] for place in places])


@dataclass(frozen=True, eq=False)
class RowDeltas:
    """The deltas of a batch's rows, stacked once however often the batch is evaluated.

    Args:
        rows: for each row the deltas by layer, or None.
    """

    rows: tuple[Deltas | None, ...]
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def stacks(self) -> Stacks:
        """Stacked anew where a delta is being learned: a graph is for one backward pass."""
        if "stacks" in self._known:
            return self._known["stacks"]
        stacks = stacked(self.rows)
        if not any(part.requires_grad for pair in stacks.values() for part in pair):
            self._known["stacks"] = stacks
        return stacks

    def __len__(self) -> int:
        return len(self.rows)


def joined_rows(parts: Sequence[RowDeltas | None], counts: Sequence[int]) -> RowDeltas | None:
    """The rows of several batches, one after another.

    Args:
        parts: their deltas, or None where none acts.
        counts: how many rows each has.
    """
    first = next((part for part in parts if part is not None), None)
    if first is None:
        return None
    layout = tuple(count if part is None else part for part, count in zip(parts, counts, strict=True))
    if layout not in first._known:
        rows = [(None,) * count if part is None else part.rows for part, count in zip(parts, counts, strict=True)]
        first._known[layout] = RowDeltas(tuple(row for part in rows for row in part))
    return first._known[layout]


# -- applying them ----------------------------------------------------------------------------------------------------


@contextmanager
def applied(network: nn.Module, row_deltas: Sequence[Deltas | None] | RowDeltas) -> Iterator[None]:
    """For the length of the block, each row of the network's batch has its own low-rank deltas, or none.

    It holds for calls in this thread; others may call the same network at the same time. Differentiable. With gradient
    checkpointing inside the network the backward pass runs layers again, so it belongs inside the block. Nested blocks
    add up.

    Args:
        network: a U-Net, PromptNet, or anything with the named layers, compiled or not; peft adapters on them are left
            in place.
        row_deltas: for each row of the batch the deltas by layer name within `network`, or None.

    Raises:
        ValueError: a layer does not exist or has another shape, the batch has another number of rows, or the network
            is fused so that its layers are not called.
        RuntimeError: the network ran, but not through these layers.
    """
    stacks = row_deltas.stacks if isinstance(row_deltas, RowDeltas) else stacked(row_deltas)
    with applied_stacks(network, stacks, len(row_deltas)):
        yield


@contextmanager
def applied_stacks(network: nn.Module, stacks: Stacks, num_rows: int) -> Iterator[None]:
    """`applied` with stacks that the caller keeps, such as buffers of a graph.

    Args:
        network: as in `applied`.
        stacks: by layer.
        num_rows: B, of the batch that the network is called with.

    Raises:
        ValueError: as in `applied`.
        RuntimeError: as in `applied`.
    """
    if not stacks:
        yield
        return
    network = getattr(network, "_orig_mod", network)  # from inside torch.compile's wrapper
    _refuse_fused(network, stacks)
    additions = {}
    for name, (down, up) in stacks.items():
        layer = _find(network, name, (up.shape[-2], down.shape[-1]))
        additions[slot_of(layer).places[0].key] = _Addition(name, down, up, num_rows)
    with asking(additions):
        yield
    if missing := [addition.name for addition in additions.values() if not addition.ran]:
        raise RuntimeError(_NEVER_RAN.format(names=", ".join(missing)))


def _refuse_fused(network: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        parent = network.get_submodule(name.rpartition(".")[0]) if _has(network, name) else None
        if isinstance(getattr(parent, "processor", None), FusedAttnProcessor2_0):
            raise ValueError(
                f"The U-Net's projections are fused, so that {name} is never called. "
                "Call unet.unfuse_qkv_projections() before drawing tuned subjects."
            )


def _has(network: nn.Module, name: str) -> bool:
    try:
        network.get_submodule(name)
    except AttributeError:
        return False
    return True


def _find(network: nn.Module, name: str, shape: tuple[int, int]) -> nn.Module:
    kind = type(network).__name__
    if not _has(network, name):
        raise ValueError(f"This {kind} has no layer {name}: the low-rank delta was made for another base model.")
    layer = network.get_submodule(name)
    expected = _matrix_shape(name, layer)
    if shape != expected:
        raise ValueError(
            f"The low-rank delta for {name} is {shape[0]}x{shape[1]}, but this {kind}'s layer is "
            f"{expected[0]}x{expected[1]}: it was made for another base model."
        )
    return layer


class _Addition:
    """What a layer does in this call: it adds B (A x) to its output, users of one batch side by side."""

    def __init__(self, name: str, down: Tensor, up: Tensor, num_rows: int) -> None:
        self.name, self.down, self.up, self.num_rows, self.ran = name, down, up, num_rows, False

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.ran = True
        if len(output) != self.num_rows:
            raise ValueError(
                f"Low-rank deltas were given for {self.num_rows} rows, but {self.name} was called with "
                f"{len(output)}: give one entry for each row of the batch."
            )
        columns = _columns(_base_layer(layer), args[0])  # (B, P, d_in)
        change = columns @ self.down.to(columns).mT @ self.up.to(columns).mT  # (B, P, d_out)
        if output.ndim == 4:
            change = change.mT
        return output + change.reshape(output.shape).to(output.dtype)


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """The inputs that a layer's weight matrix is multiplied with, (B, positions, d_in)."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # pyright: ignore
        return patches.mT
    return x.reshape(len(x), -1, x.shape[-1])
