"""Which base model a subject was made for, told by its weights.

A name says little: one name has several revisions, and one set of weights many names. So each component is known by
a hash of its weights: of every tensor's shape, and of up to 1024 values evenly spread over it. Values are rounded to
float16 first, so float32 and float16 copies of one model agree. Module names stay out, because they change between
versions of the libraries, and so does what comes and goes on top of a model: LoRA and IP-Adapters, fused projections,
words of textual inversions. Training, merging or swapping weights is noticed; a hand-made change of single values may
not be.

A copy in bfloat16 or float8 has lost digits, and with them the hash. For these a sketch stands behind the hash: sums of
the same values with fixed random signs, which rounding changes little and another model's weights change wholly. Two
models of which one has lost digits are the same if their sketches agree to what was lost: what differs by less than
that, a little training for instance, is not noticed there.

It takes a fraction of a second for several gigabytes, so it is computed anew each time, and never stale.
"""

import base64
import binascii
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# The components that a subject depends on, where a pipeline has them.
COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "vae", "promptnet", "image_encoder")
_MAX_VALUES = 1024
_NUM_SUMS = 32
# How far sketches of one model may differ, as a share of themselves, by the coarsest type of the two.
_TOLERANCE = {"": 0.0, "bfloat16": 2.5e-3, "float8": 0.1}
_IP_ADAPTER = "ip_image_proj"


def fingerprint(pipe: Any) -> dict[str, str]:
    """The hash of each component of a pipeline that a subject depends on, by the component's name.

    Raises:
        ValueError: weights are not in memory (they are on the meta device).
    """
    return hashes_of(pipe, COMPONENTS)


def hashes_of(pipe: Any, names: Sequence[str]) -> dict[str, str]:
    """`hash_weights` of those of the named components that a pipeline has, without words of textual inversions.

    Raises:
        ValueError: weights are not in memory.
    """
    found = {name: getattr(pipe, name, None) for name in names}
    return {
        name: hash_weights(network, name, _num_own_words(pipe, name))
        for name, network in found.items()
        if network is not None
    }


def _num_own_words(pipe: Any, name: str) -> int | None:
    """How many rows of a text encoder's token embeddings are its own, where its tokenizer was given further words."""
    if not name.startswith("text_encoder"):
        return None
    tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"), None)
    own = getattr(tokenizer, "vocab_size", None)
    return own if tokenizer is not None and own is not None and len(tokenizer) > own else None


def hash_weights(network: nn.Module, name: str = "model", num_words: int | None = None) -> str:
    """16 hexadecimal digits and a sketch, "hash.lost digits.sketch"; compare them with `differing` or `same_weights`.

    The digits stay the same for the same weights, on any device, in float32 or float16.

    Args:
        network: anything with floating-point weights.
        name: what error messages call it.
        num_words: of a text encoder, how many of the token embeddings are its own; None is all.

    Raises:
        ValueError: weights are not in memory.
    """
    tensors = _own_weights(network, num_words)
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError(
            f"The weights of the {name} are not in memory, so it cannot be checked which base model this is. "
            "Load them, or use pipe.enable_model_cpu_offload()."
        )
    samples = _samples(tensors)
    digests = sorted(_digest(tensor, values) for tensor, values in zip(tensors, samples, strict=True))
    found = hashlib.sha256(b"".join(digests)).hexdigest()[:16]
    return f"{found}.{_lost_digits(tensors)}.{_sketch(tensors, samples)}"


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The components whose weights differ, or that only one of two fingerprints has."""
    return [name for name in {**one, **other} if not same_weights(one.get(name), other.get(name))]


def same_weights(one: str | None, other: str | None) -> bool:
    """Whether two of `hash_weights` are of the same weights, but for digits that one of them has lost."""
    if one is None or other is None:
        return one is other
    (hash_, lost, sketch), (other_hash, other_lost, other_sketch) = map(_parsed, (one, other))
    if hash_ == other_hash:
        return True
    tolerance = max(_TOLERANCE.get(lost, 0.0), _TOLERANCE.get(other_lost, 0.0))
    if not tolerance or sketch is None or other_sketch is None:
        return False
    distance = (sketch - other_sketch).square().mean().sqrt()
    return bool(distance <= tolerance * torch.maximum(sketch.square().mean(), other_sketch.square().mean()).sqrt())


def _parsed(text: str) -> tuple[str, str, Tensor | None]:
    """Hash, lost digits and sketch; earlier files have the hash alone."""
    found, lost, encoded = [*text.split(".", 2), "", ""][:3]
    try:
        values = np.frombuffer(base64.b64decode(encoded, validate=True), "<f2")
    except (binascii.Error, ValueError):
        return found, "", None
    return found, lost, torch.from_numpy(values.astype(np.float64)) if len(values) == _NUM_SUMS else None


def _own_weights(network: nn.Module, num_words: int | None = None) -> list[Tensor]:
    """Every floating-point tensor but those of what was put on top."""
    state = _state_in_memory(network)
    # An attribute: diffusers leaves the config's entry as it was.
    has_adapter = getattr(getattr(network, "config", None), "encoder_hid_dim_type", None) == _IP_ADAPTER
    adapters = tuple(_adapter_prefixes(network))
    found = {
        key: tensor
        for key, tensor in state.items()
        if _is_own_weight(key, tensor, state, has_adapter) and not key.startswith(adapters)
    }
    embeddings = [key for key in found if key.endswith("token_embedding.weight")]
    for key in embeddings if num_words is not None else []:
        found[key] = found[key][:num_words]
    return list(found.values())


def _state_in_memory(network: nn.Module) -> dict[str, Tensor]:
    """The state with weights that sequential offloading has put aside, which it keeps on the CPU."""
    return {
        key: _put_aside(network, key, tensor) if tensor.is_meta else tensor
        for key, tensor in network.state_dict().items()
    }


def _put_aside(network: nn.Module, key: str, default: Tensor) -> Tensor:
    """Look up a weight where accelerate's hook on its layer takes it from."""
    path, _, name = key.rpartition(".")
    hook = getattr(network.get_submodule(path), "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        weights: Any = getattr(each, "weights_map", None)
        if weights is not None:
            return weights[name]
    return default


def _adapter_prefixes(network: nn.Module) -> Iterator[str]:
    """The beginnings of the names of weights that peft has put beside a layer: LoRA, LoHa, LoKr, DoRA and others."""
    for name, module in network.named_modules():
        if hasattr(module, "base_layer"):
            beside = (*getattr(module, "adapter_layer_names", ()), *getattr(module, "other_param_names", ()))
            yield from (f"{name}.{part}." for part in beside)


def _is_own_weight(key: str, tensor: Tensor, state: Mapping[str, Tensor], has_adapter: bool) -> bool:
    if not tensor.is_floating_point() or ".lora_" in key or ".processor." in key:
        return False
    if has_adapter and key.startswith("encoder_hid_proj."):
        return False
    layer, _, rest = key.rpartition(".to_")
    return not (rest.startswith(("qkv.", "kv.")) and f"{layer}.to_k.weight" in state)  # made of to_q, to_k and to_v


def _lost_digits(tensors: Sequence[Tensor]) -> str:
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    if any(name.startswith("float8") for name in types):
        return "float8"
    return "bfloat16" if "bfloat16" in types else ""


def _sketch(tensors: Sequence[Tensor], samples: Sequence[Tensor]) -> str:
    """Sums of the values with random signs that depend on their tensor's shape and their place alone.

    Values count by the size that their layer's inputs give them, so that wide layers do not vanish beside narrow ones.
    """
    total, count = torch.zeros(_NUM_SUMS, dtype=torch.float64), 0
    by_shape: dict[tuple[int, ...], Tensor] = {}
    for tensor, values in zip(tensors, samples, strict=True):
        fan_in = tensor[0].numel() if tensor.ndim > 1 and len(tensor) else 1
        scaled = values.double() * fan_in**0.5
        by_shape[tuple(tensor.shape)] = by_shape.get(tuple(tensor.shape), torch.zeros(())) + scaled
        count += len(values)
    for shape, values in by_shape.items():
        total += _signs(shape, len(values)).double() @ values
    sums = (total / max(count, 1) ** 0.5).numpy().astype("<f2")
    return base64.b64encode(sums.tobytes()).decode()


@functools.lru_cache(maxsize=512)
def _signs(shape: tuple[int, ...], count: int) -> Tensor:
    """-1 or 1 for each sum and value, (_NUM_SUMS, count) int8: drawing them anew took a third of a fingerprint."""
    seed = int.from_bytes(hashlib.sha256(repr(shape).encode()).digest()[:7], "big")
    signs = np.random.default_rng(seed).integers(0, 2, (_NUM_SUMS, count)) * 2 - 1
    return torch.from_numpy(signs.astype(np.int8))


def _samples(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Some values of each tensor, on the CPU; they travel from a device together."""
    samples = [_spread_values(tensor) for tensor in tensors]
    by_device: dict[torch.device, list[int]] = {}
    for index, sample in enumerate(samples):
        by_device.setdefault(sample.device, []).append(index)
    for device, indices in by_device.items():
        with torch.autocast(device.type, enabled=False):  # on a CPU it refuses float16
            together = torch.cat([samples[i] for i in indices]).cpu()
        parts = together.split([len(samples[i]) for i in indices])
        for index, part in zip(indices, parts, strict=True):
            samples[index] = part
    return samples


def _spread_values(tensor: Tensor) -> Tensor:
    """Up to 1024 values from first to last in the tensor's logical order, as float16."""
    num_values, values = tensor.numel(), tensor.detach()
    if values.dtype.itemsize == 1:  # float8, which torch cannot take from
        values = values.to(torch.float16)
    if num_values <= _MAX_VALUES:  # all of them, as most tensors are biases and norms
        return values.flatten().to(torch.float16)
    places = torch.arange(_MAX_VALUES, device=tensor.device) * num_values // _MAX_VALUES
    return torch.take(values, places).to(torch.float16)


def _digest(tensor: Tensor, values: Tensor) -> bytes:
    shape = ",".join(str(size) for size in tensor.shape).encode()
    return hashlib.sha256(shape + b":" + values.numpy().astype("<f2").tobytes()).digest()
