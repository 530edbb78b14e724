"""Which base model a subject was made for, told by its weights.

A name says little: one name has several revisions, and one set of weights many names. So each component is known by
a hash of its weights: of every tensor's shape, and of up to 1024 values evenly spread over it. Values are rounded to
float16 first, so float32 and float16 copies of one model agree; a bfloat16 copy has lost digits and is another model.
Module names stay out, because they change between versions of the libraries, and so do LoRA adapters, which come and
go on top of a model. Training, merging or swapping weights is noticed; a hand-made change of single values may not be.

It takes a fraction of a second for several gigabytes, so it is computed anew each time, and never stale.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

# The components that a subject depends on, where a pipeline has them.
COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "vae", "promptnet", "image_encoder")
_MAX_VALUES = 1024


def fingerprint(pipe: Any) -> dict[str, str]:
    """The hash of each component of a pipeline that a subject depends on, by the component's name.

    Raises:
        ValueError: weights are not in memory (sequential offloading keeps them on the meta device).
    """
    found = {name: getattr(pipe, name, None) for name in COMPONENTS}
    return {name: hash_weights(network, name) for name, network in found.items() if network is not None}


def hash_weights(network: nn.Module, name: str = "model") -> str:
    """16 hexadecimal digits that stay the same for the same weights, on any device, in float32 or float16.

    Args:
        network: anything with floating-point weights.
        name: what error messages call it.

    Raises:
        ValueError: weights are not in memory.
    """
    tensors = [tensor for key, tensor in network.state_dict().items() if _is_own_weight(key, tensor)]
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError(
            f"The weights of the {name} are not in memory, so it cannot be checked that the subject was made for it. "
            "Use pipe.enable_model_cpu_offload() instead of sequential offloading."
        )
    digests = sorted(_digests(tensors))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _is_own_weight(key: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and ".lora_" not in key


def _digests(tensors: list[Tensor]) -> list[bytes]:
    """One digest for each tensor; their values travel from the device together."""
    if not tensors:
        return []
    samples = [_spread_values(tensor) for tensor in tensors]
    counts = [len(sample) for sample in samples]
    by_device: dict[torch.device, list[int]] = {}
    for index, sample in enumerate(samples):
        by_device.setdefault(sample.device, []).append(index)
    values: dict[int, Tensor] = {}
    for device, indices in by_device.items():
        with torch.autocast(device.type, enabled=False):  # on a CPU it refuses float16
            together = torch.cat([samples[i] for i in indices]).cpu()
        values.update(zip(indices, together.split([counts[i] for i in indices]), strict=True))
    return [_digest(tensor, values[index]) for index, tensor in enumerate(tensors)]


def _spread_values(tensor: Tensor) -> Tensor:
    """Up to 1024 values from first to last in the tensor's logical order, as float16."""
    num_values = tensor.numel()
    count = min(num_values, _MAX_VALUES)
    places = torch.arange(count, device=tensor.device) * num_values // max(count, 1)
    return torch.take(tensor.detach(), places).to(torch.float16)


def _digest(tensor: Tensor, values: Tensor) -> bytes:
    shape = ",".join(str(size) for size in tensor.shape).encode()
    return hashlib.sha256(shape + b":" + values.numpy().astype("<f2").tobytes()).digest()
