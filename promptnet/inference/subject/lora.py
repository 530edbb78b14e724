"""Low-rank changes of single layers, as data: what tuning adds for one user while the networks stay shared.

A LoRA layer, W + B A, belongs to rows of a batch, not to a network. A call has, for each layer, stacks A (rows, R,
d_in) and B (rows, d_out, R) with zeros in rows that own none; the layer adds B (A x) to its output. Other rows are
bit-identical to the plain call, so one batch can hold many users, and terms without S* are the base model's own.

The stacks belong to the caller and travel with the call, in the context of its thread (`models/slots.py`): no layer
holds any. So one network serves calls of many threads, each with its own people. Compiled code has the stacks as inputs
of its graph, and is made once for each shape of them, not for each person.

Low-rank adaptation is arXiv 2106.09685; keys and values of cross-attention as what to tune is arXiv 2212.04488,
section 3.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from torch import Tensor, nn

from promptnet.models.slots import asking, slot_of

# A context entered for a network that then never runs the layers would draw the wrong person without a word.
_NEVER_RAN = (
    "LoRA layers were given for {names}, but the network never called these layers: its attention processor goes "
    "around them. Use a processor that calls attn.to_k and attn.to_v, such as diffusers' AttnProcessor2_0."
)


@dataclass(frozen=True, eq=False)
class LoRALayer:
    """What is added to a layer's weight matrix: B A. A convolution's kernel counts as (d_out, C * kh * kw).

    Args:
        A: (r, d_in), down to the rank.
        B: (d_out, r), up again.

    Raises:
        ValueError: the two do not fit together.
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or len(self.A) != self.B.shape[1] or not len(self.A):
            raise ValueError(
                "A LoRA layer is A (r, d_in) and B (d_out, r) with r >= 1, but got "
                f"{tuple(self.A.shape)} and {tuple(self.B.shape)}."
            )

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in), as of the weight that it is added to."""
        return self.B.shape[0], self.A.shape[1]

    def matrix(self) -> Tensor:
        """B A, (d_out, d_in)."""
        return self.B @ self.A

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "LoRALayer":
        return LoRALayer(self.A.to(device=device, dtype=dtype), self.B.to(device=device, dtype=dtype))


LoRALayers = Mapping[str, LoRALayer]  # by the layer's name in its network


def merge_loras(parts: Sequence[LoRALayers], weights: Sequence[float] | None = None) -> dict[str, LoRALayer]:
    """The weighted sum of several LoRA layers, exactly: ranks stand beside each other."""
    weights = [1.0] * len(parts) if weights is None else weights
    found: dict[str, list[tuple[float, LoRALayer]]] = {}
    for weight, part in zip(weights, parts, strict=True):
        for name, lora in part.items():
            found.setdefault(name, []).append((weight, lora))
    return {
        name: LoRALayer(torch.cat([d.A for _, d in terms]), torch.cat([w * d.B for w, d in terms], dim=1))
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


def initial_loras(
    layers: Mapping[str, nn.Module], rank: int, generator: torch.Generator | None = None
) -> dict[str, LoRALayer]:
    """LoRA layers that change nothing yet: B is 0, A is random with the root mean square of the layer's weights.

    So one step of B means the same relative change of the output in every layer.

    Args:
        layers: by name.
        rank: r.
        generator: a CPU generator.

    Raises:
        ValueError: the rank is not between 1 and what a layer can have.
    """
    loras = {}
    for name, layer in layers.items():
        d_out, d_in = matrix_shape(name, layer)
        if not 1 <= rank <= min(d_out, d_in):
            raise ValueError(f"rank={rank} must be between 1 and {min(d_out, d_in)}, the most that {name} can have.")
        weight = base_layer(layer).get_parameter("weight").detach()
        scale = weight.float().square().mean().sqrt()
        A = torch.randn(rank, d_in, generator=generator).to(weight.device) * scale
        loras[name] = LoRALayer(A, torch.zeros(d_out, rank, device=weight.device))
    return loras


def base_layer(layer: nn.Module) -> nn.Module:
    """The layer itself, from inside a peft wrapper."""
    wrapped: Any = layer
    return wrapped.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def matrix_shape(name: str, layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer or of a convolution's flattened kernel."""
    base = base_layer(layer)
    if isinstance(base, nn.Linear):
        return base.out_features, base.in_features
    if isinstance(base, nn.Conv2d) and base.groups == 1 and isinstance(base.padding, tuple):
        return base.out_channels, base.in_channels * base.kernel_size[0] * base.kernel_size[1]
    raise ValueError(f"{name} is a {type(base).__name__}: only Linear and ungrouped Conv2d layers take LoRA layers.")


# -- stacks -----------------------------------------------------------------------------------------------------------

Stacks = Mapping[str, tuple[Tensor, Tensor]]
"""By layer A (B, R, d_in) and B (B, d_out, R); or (R, d_in) and (d_out, R), the same in all rows."""


def stacked(row_loras: Sequence[LoRALayers | None], rank: int | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """The LoRA layers of a batch's rows as stacks, lower ranks and rows without a LoRA layer filled up with zeros.

    Args:
        row_loras: for each row the LoRA layers by name, or None.
        rank: R, for stacks of one shape whoever is in the batch; None is the largest rank in a layer, and one LoRA
            layer in all rows stays one.

    Raises:
        ValueError: a LoRA layer has a larger rank.
    """
    count = len(row_loras)
    return {name: _stack(name, rows, count, rank) for name, rows in _owners(row_loras).items()}


def _owners(row_loras: Sequence[LoRALayers | None]) -> dict[str, dict[int, LoRALayer]]:
    """For each layer, which rows have which lora."""
    owners: dict[str, dict[int, LoRALayer]] = {}
    for row, loras in enumerate(row_loras):
        for name, lora in (loras or {}).items():
            owners.setdefault(name, {})[row] = lora
    return owners


def _stack(name: str, rows: Mapping[int, LoRALayer], count: int, rank: int | None) -> tuple[Tensor, Tensor]:
    first, largest = next(iter(rows.values())), max(lora.rank for lora in rows.values())
    if rank is None and len(rows) == count and all(lora is first for lora in rows.values()):
        return first.A, first.B
    if rank is not None and largest > rank:
        raise ValueError(f"The LoRA layer for {name} has rank {largest}, more than rank={rank}.")
    rank = largest if rank is None else rank
    all_A = [F.pad(lora.A, (0, 0, 0, rank - lora.rank)) for lora in rows.values()]
    all_B = [F.pad(lora.B, (0, rank - lora.rank)) for lora in rows.values()]
    for others in {lora.shape for lora in rows.values()} - {first.shape}:
        raise ValueError(
            f"The LoRA layers for {name} are {first.shape[0]}x{first.shape[1]} and {others[0]}x{others[1]}: they "
            "were made for different base models."
        )
    places = [list(rows).index(row) if row in rows else -1 for row in range(count)]
    return _with_zeros(all_A, places), _with_zeros(all_B, places)


def _with_zeros(matrices: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """(len(places), ...), zeros where a place is -1."""
    zeros = torch.zeros_like(matrices[0])
    return torch.stack([zeros if place < 0 else matrices[place] for place in places])


@dataclass(frozen=True, eq=False)
class RowLoRAs:
    """The LoRA layers of a batch's rows, stacked once however often the batch is evaluated.

    Args:
        rows: for each row the LoRA layers by name, or None.
    """

    rows: tuple[LoRALayers | None, ...]
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def stacks(self) -> Stacks:
        """Stacked anew where a LoRA layer is being learned: a graph is for one backward pass."""
        if "stacks" in self._known:
            return self._known["stacks"]
        stacks = stacked(self.rows)
        if not any(part.requires_grad for pair in stacks.values() for part in pair):
            self._known["stacks"] = stacks
        return stacks

    def __len__(self) -> int:
        return len(self.rows)


def joined_rows(parts: Sequence[RowLoRAs | None], counts: Sequence[int]) -> RowLoRAs | None:
    """The rows of several batches, one after another.

    Args:
        parts: their LoRA layers, or None where none acts.
        counts: how many rows each has.
    """
    first = next((part for part in parts if part is not None), None)
    if first is None:
        return None
    layout = tuple(count if part is None else part for part, count in zip(parts, counts, strict=True))
    if layout not in first._known:
        rows = [(None,) * count if part is None else part.rows for part, count in zip(parts, counts, strict=True)]
        first._known[layout] = RowLoRAs(tuple(row for part in rows for row in part))
    return first._known[layout]


# -- applying them ----------------------------------------------------------------------------------------------------


@contextmanager
def apply_loras(network: nn.Module, row_loras: Sequence[LoRALayers | None] | RowLoRAs) -> Iterator[None]:
    """For the length of the block, each row of the network's batch has its own LoRA layers, or none.

    It holds for calls in this thread; others may call the same network at the same time. Differentiable. With gradient
    checkpointing inside the network the backward pass runs layers again, so it belongs inside the block. Nested blocks
    add up.

    Args:
        network: a U-Net, PromptNet, or anything with the named layers, compiled or not; peft adapters on them are left
            in place.
        row_loras: for each row of the batch the LoRA layers by layer name within `network`, or None.

    Raises:
        ValueError: a layer does not exist or has another shape, the batch has another number of rows, or the network
            is fused so that its layers are not called.
        RuntimeError: the network ran, but not through these layers.
    """
    stacks = row_loras.stacks if isinstance(row_loras, RowLoRAs) else stacked(row_loras)
    with applied_stacks(network, stacks, len(row_loras)):
        yield


@contextmanager
def applied_stacks(network: nn.Module, stacks: Stacks, num_rows: int) -> Iterator[None]:
    """`apply_loras` with stacks that the caller keeps, such as buffers of a graph.

    Args:
        network: as in `apply_loras`.
        stacks: by layer.
        num_rows: B, of the batch that the network is called with.

    Raises:
        ValueError: as in `apply_loras`.
        RuntimeError: as in `apply_loras`.
    """
    if not stacks:
        yield
        return
    network = getattr(network, "_orig_mod", network)  # from inside torch.compile's wrapper
    additions = {}
    for name, (A, B) in stacks.items():
        layer = _checked(network, name, (B.shape[-2], A.shape[-1]))
        additions[slot_of(layer).places[0].key] = _Addition(name, A, B, num_rows)
    with asking(additions):
        yield
    if missing := [addition.name for addition in additions.values() if not addition.ran]:
        raise RuntimeError(_NEVER_RAN.format(names=", ".join(missing)))


def install_slots(layers: Mapping[str, nn.Module]) -> None:
    """Give layers what LoRA layers act through, before code is compiled that looks whether they have it."""
    for layer in layers.values():
        slot_of(layer)


@dataclass(frozen=True, eq=False)
class _Found:
    """A layer of a network, and the way to it: (modules of one level, name in it, module) from the network on.

    Walking to a layer by its name, and its shape, take more time than all else that a call does for it.
    """

    way: tuple[tuple[Mapping[str, Any], str, nn.Module], ...]
    parent: nn.Module
    layer: nn.Module
    shape: tuple[int, int]

    def is_there(self) -> bool:
        """Whether nothing on the way was replaced."""
        return all(modules.get(name) is module for modules, name, module in self.way)


_FOUND: WeakKeyDictionary[nn.Module, dict[str, _Found]] = WeakKeyDictionary()


def _checked(network: nn.Module, name: str, shape: tuple[int, int]) -> nn.Module:
    """The named layer, which a LoRA layer of this shape goes with, and which is called."""
    known = _FOUND.setdefault(network, {})
    found = known.get(name)
    if found is None or not found.is_there():
        found = known[name] = _walked(network, name)
    if isinstance(getattr(found.parent, "processor", None), FusedAttnProcessor2_0):
        raise ValueError(
            f"The U-Net's projections are fused, so that {name} is never called. "
            "Call unet.unfuse_qkv_projections() before drawing tuned subjects."
        )
    if shape != found.shape:
        raise ValueError(
            f"The LoRA layer for {name} is {shape[0]}x{shape[1]}, but this {type(network).__name__}'s layer is "
            f"{found.shape[0]}x{found.shape[1]}: it was made for another base model."
        )
    return found.layer


def _walked(network: nn.Module, name: str) -> _Found:
    way: list[tuple[Mapping[str, Any], str, nn.Module]] = []
    parent = module = network
    for part in name.split("."):
        child = getattr(module, part, None)
        if not isinstance(child, nn.Module):
            raise ValueError(
                f"This {type(network).__name__} has no layer {name}: the LoRA layer was made for another base model."
            )
        way.append((module._modules, part, child))
        parent, module = module, child
    return _Found(tuple(way), parent, module, matrix_shape(name, module))


class _Addition:
    """What a layer does in this call: it adds B (A x) to its output, users of one batch side by side."""

    def __init__(self, name: str, A: Tensor, B: Tensor, num_rows: int) -> None:
        self.name, self.A, self.B, self.num_rows, self.ran = name, A, B, num_rows, False

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.ran = True
        num_rows = output.shape[0]  # not len(), which exported graphs take for a constant
        if num_rows != self.num_rows:
            raise ValueError(
                f"LoRA layers were given for {self.num_rows} rows, but {self.name} was called with "
                f"{num_rows}: give one entry for each row of the batch."
            )
        columns = _columns(base_layer(layer), args[0])  # (B, P, d_in)
        change = columns @ self.A.to(columns).mT @ self.B.to(columns).mT  # (B, P, d_out)
        if output.ndim == 4:
            change = change.mT
        return output + change.reshape(output.shape).to(output.dtype)


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """The inputs that a layer's weight matrix is multiplied with, (B, positions, d_in)."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # pyright: ignore
        return patches.mT
    return x.reshape(x.shape[0], -1, x.shape[-1])
