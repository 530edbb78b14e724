"""How fast a step is, and what the device could do at most: model FLOPs utilisation (arXiv 2204.02311, appendix B)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class PeakTflops(NamedTuple):
    """Dense peak of one device in 10^12 operations a second, from its data sheet.

    Args:
        half: float16 or bfloat16, accumulating in float32.
        tf32: float32 matrices on tensor cores.
        full: float32.
    """

    half: float
    tf32: float
    full: float


# The first name found in the device's own counts, so longer names stand before shorter ones.
PEAKS: dict[str, PeakTflops] = {
    "H200": PeakTflops(989.0, 494.5, 67.0),
    "GH200": PeakTflops(989.0, 494.5, 67.0),
    "H100 PCIe": PeakTflops(756.0, 378.0, 51.0),
    "H100": PeakTflops(989.0, 494.5, 67.0),
    "A100": PeakTflops(312.0, 156.0, 19.5),
    "L40S": PeakTflops(362.0, 183.0, 91.6),
    "L4": PeakTflops(121.0, 60.0, 30.3),
    "A10": PeakTflops(125.0, 62.5, 31.2),
    "V100": PeakTflops(125.0, 15.7, 15.7),
    "T4": PeakTflops(65.0, 8.1, 8.1),
    "RTX 4090": PeakTflops(165.2, 82.6, 82.6),
    "RTX 3090": PeakTflops(71.0, 35.6, 35.6),
}


def peak_tflops(device_name: str, precision: str, has_tf32: bool = False) -> float | None:
    """What a device can do at most under one of Lightning's precisions; None for devices that are not in `PEAKS`.

    Args:
        device_name: as torch.cuda.get_device_name says it.
        precision: for example "bf16-mixed" or "32-true".
        has_tf32: whether float32 products may run on tensor cores.
    """
    words = device_name.replace("-", " ").split()
    for name, peak in PEAKS.items():
        if all(word in words for word in name.split()):
            return peak.half if "16" in precision else peak.tf32 if has_tf32 else peak.full
    return None


def utilisation(flop_per_image: float, images_per_s: float, tflops: float) -> float:
    """Of one device: operations a second over what it could do. Those that the model needs give the model's share
    (MFU), those that are done, recomputation included, the hardware's (HFU).
    """
    return flop_per_image * images_per_s / (tflops * 1e12)


def num_rows(batch: Any) -> int:
    """How many samples a batch holds: the length of the first tensor or list in it.

    Raises:
        ValueError: there is none.
    """
    if isinstance(batch, torch.Tensor):
        return len(batch)
    inside = list(batch.values()) if isinstance(batch, Mapping) else list(batch) if isinstance(batch, Sequence) else []
    for value in inside:
        if isinstance(value, torch.Tensor) and value.ndim:
            return len(value)
        if isinstance(value, (list, tuple)):
            return len(value)
    raise ValueError(f"a batch of type {type(batch).__name__} holds neither a tensor nor a list, so no samples")


class FlopCount(TorchDispatchMode):
    """Adds up `total` floating-point operations, by PyTorch's own formulas, of what runs while it is entered.

    `recomputed` is the part of them that gradient checkpointing does a second time: what runs inside a backward pass
    with gradients switched on.

    `torch.utils.flop_counter.FlopCounterMode` takes some operations apart to count their pieces, and their results are
    then not bit for bit the same: in a training, the counted step would decide the weights. Here each runs as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self.recomputed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count it if there is a formula for it."""
        from torch.utils.flop_counter import flop_registry

        outcome = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            flops = formula(*args, **(kwargs or {}), out_val=outcome)
            self.total += flops
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
                self.recomputed += flops
        return outcome


@contextmanager
def counting_flops(networks: Sequence[nn.Module]) -> Iterator[FlopCount]:
    """Count the floating-point operations inside the block, backward included.

    Results stay the same, bit for bit. Compiled networks run eagerly meanwhile.
    """
    compiled = any(getattr(module, "_compiled_call_impl", None) for network in networks for module in network.modules())
    with ExitStack() as stack:
        if compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield stack.enter_context(FlopCount())
