"""Low-rank changes of single layers, as data: what tuning adds for one user while the networks stay shared.

A delta W + up @ down belongs to rows of a batch, not to a network: for the length of one call, forward hooks add
up @ (down @ x) to the outputs of the rows that own one. Other rows are bit-identical to the plain call, so one batch
can hold many users, and terms without S* are the base model's own.

Low-rank adaptation is arXiv 2106.09685; keys and values of cross-attention as what to tune is arXiv 2212.04488,
section 3.1.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from torch import Tensor, nn

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


# -- applying them ----------------------------------------------------------------------------------------------------


@contextmanager
def applied(network: nn.Module, row_deltas: Sequence[Deltas | None]) -> Iterator[None]:
    """For the length of the block, each row of the network's batch has its own low-rank deltas, or none.

    Differentiable. With gradient checkpointing inside the network the backward pass runs layers again, so it belongs
    inside the block. Nested blocks add up. Like diffusers' pipelines, one network serves one call at a time.

    Args:
        network: a U-Net, PromptNet, or anything with the named layers; peft adapters on them are left in place.
        row_deltas: for each row of the batch the deltas by layer name within `network`, or None.

    Raises:
        ValueError: a layer does not exist or has another shape, the batch has another number of rows, or the network
            is compiled or fused so that its layers are not called.
        RuntimeError: the network ran, but not through these layers.
    """
    owners = _owners(row_deltas)
    if not owners:
        yield
        return
    _refuse_bypassed(network, owners)
    additions = [_Addition(name, rows, len(row_deltas)) for name, rows in owners.items()]
    with ExitStack() as hooks:
        for addition in additions:
            layer = _find(network, addition.name, owners[addition.name].values())
            hooks.callback(layer.register_forward_hook(addition).remove)
        yield
    if missing := [addition.name for addition in additions if not addition.ran]:
        raise RuntimeError(_NEVER_RAN.format(names=", ".join(missing)))


def _owners(row_deltas: Sequence[Deltas | None]) -> dict[str, dict[int, LowRankDelta]]:
    """For each layer, which rows have which delta."""
    owners: dict[str, dict[int, LowRankDelta]] = {}
    for row, deltas in enumerate(row_deltas):
        for name, delta in (deltas or {}).items():
            owners.setdefault(name, {})[row] = delta
    return owners


def _refuse_bypassed(network: nn.Module, names: Iterable[str]) -> None:
    if any(isinstance(m, torch._dynamo.OptimizedModule) or m._compiled_call_impl for m in network.modules()):
        raise ValueError(
            f"{type(network).__name__} is compiled, and compiled code does not see low-rank deltas that come and go. "
            "Draw tuned subjects with the network that was not compiled."
        )
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


def _find(network: nn.Module, name: str, deltas: Iterable[LowRankDelta]) -> nn.Module:
    kind = type(network).__name__
    if not _has(network, name):
        raise ValueError(f"This {kind} has no layer {name}: the low-rank delta was made for another base model.")
    layer = network.get_submodule(name)
    shape = _matrix_shape(name, layer)
    for delta in deltas:
        if delta.shape != shape:
            raise ValueError(
                f"The low-rank delta for {name} is {delta.shape[0]}x{delta.shape[1]}, but this {kind}'s layer is "
                f"{shape[0]}x{shape[1]}: it was made for another base model."
            )
    return layer


class _Addition:
    """A forward hook: adds up @ (down @ x) to the rows that own a delta, users of one batch side by side."""

    def __init__(self, name: str, rows: Mapping[int, LowRankDelta], batch_size: int) -> None:
        self.name, self.batch_size, self.ran = name, batch_size, False
        self.rows = tuple(rows)
        deltas = list(rows.values())
        one_user = all(delta is deltas[0] for delta in deltas)
        self.down, self.up = (deltas[0].down, deltas[0].up) if one_user else _stack(deltas)

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.ran = True
        if len(output) != self.batch_size:
            raise ValueError(
                f"Low-rank deltas were given for {self.batch_size} rows, but {self.name} was called with "
                f"{len(output)}: give one entry for each row of the batch."
            )
        if len(self.rows) == self.batch_size:
            return output + self._change(layer, args[0], output)
        rows = _index(self.rows, output.device)
        return output.index_add(0, rows, self._change(layer, args[0][rows], output[rows]))

    def _change(self, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """What is added to these rows' `output`, from their inputs `x`."""
        columns = _columns(_base_layer(layer), x)  # (n, P, d_in)
        down, up = self.down.to(columns), self.up.to(columns)  # (r, d_in), (d_out, r), or one for each row
        change = columns @ down.mT @ up.mT  # (n, P, d_out)
        if output.ndim == 4:
            change = change.mT
        return change.reshape(output.shape).to(output.dtype)


@lru_cache(maxsize=64)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept from layer to layer and step to step: making it anew would wait for the device each time."""
    with torch.inference_mode(False):  # or a later backward pass could not use it
        return torch.tensor(rows, device=device)


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """The inputs that a layer's weight matrix is multiplied with, (n, positions, d_in)."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # pyright: ignore
        return patches.mT
    return x.reshape(len(x), -1, x.shape[-1])


def _stack(deltas: Sequence[LowRankDelta]) -> tuple[Tensor, Tensor]:
    """(n, r, d_in) and (n, d_out, r), lower ranks filled up with zeros."""
    rank = max(delta.rank for delta in deltas)
    downs = [F.pad(delta.down, (0, 0, 0, rank - delta.rank)) for delta in deltas]
    ups = [F.pad(delta.up, (0, rank - delta.rank)) for delta in deltas]
    return torch.stack(downs), torch.stack(ups)
