"""How many rows one U-Net call may have: measured once on the device, from two small calls.

The memory of a call grows by the same amount with every row, so the difference between a small and a somewhat larger
one says how many fit into what is free. Where memory ends all the same (another process takes it, or larger images are
asked for), `Together` halves the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

DEFAULT_ROWS = 32
MOST_ROWS = 128
_SHARE = 0.8  # of the free memory: the decoder, other sizes and LoRA buffers need some too
_SMALL, _LARGER = 1, 3  # images of the two calls


class Memory(Protocol):
    """Memory of one device."""

    def peak(self, work: Callable[[], object]) -> int:
        """Return how many bytes more than before were in use at once during a piece of work."""
        ...

    def free(self) -> int:
        """Return how many bytes are left."""
        ...


class CudaMemory:
    """Memory of a CUDA device, as torch counts it."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def peak(self, work: Callable[[], object]) -> int:
        import torch

        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def free(self) -> int:
        import torch

        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]


def measured_rows(pipe: Any, memory: Memory | None = None) -> int:
    """Return how many rows of the trained size fit into one call; `DEFAULT_ROWS` where memory is not a GPU's.

    Args:
        pipe: a PromptNetPipeline on its device.
        memory: of that device; None is torch's count of a CUDA device.
    """
    device = pipe._execution_device
    if memory is None and device.type != "cuda":
        return DEFAULT_ROWS
    memory = memory or CudaMemory(device)
    _call(pipe, _SMALL)  # libraries take their workspace in the first call
    (few, small), (more, larger) = (_measured(pipe, memory, count) for count in (_SMALL, _LARGER))
    each = (larger - small) / (more - few)
    return DEFAULT_ROWS if each <= 0 else max(1, min(MOST_ROWS, int(_SHARE * memory.free() / each)))


def _measured(pipe: Any, memory: Memory, num_images: int) -> tuple[int, int]:
    """Return the rows of a call and the bytes that it needed."""
    rows: list[int] = []

    def note(_unet: Any, inputs: tuple[Any, ...]) -> None:
        rows.append(len(inputs[0]))

    hook = pipe.unet.register_forward_pre_hook(note)
    try:
        num_bytes = memory.peak(lambda: _call(pipe, num_images))
    finally:
        hook.remove()
    return max(rows), num_bytes


def _call(pipe: Any, num_images: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"num_images_per_prompt": num_images, "generator": generator, "resolution": "off"}
    pipe("", num_inference_steps=1, guidance_scale=2.0, output_type="latent", **given)
