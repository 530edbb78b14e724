"""How networks run beside ComfyUI's own: its device, its memory, its progress bar, its stop button."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import torch


@contextmanager
def with_gradients() -> Iterator[None]:
    """Leave the inference mode in which ComfyUI calls nodes: what is made in it cannot be tuned later."""
    with torch.inference_mode(False):
        yield


@contextmanager
def on_device(pipe: Any) -> Iterator[None]:
    """Have a pipeline's networks on ComfyUI's device for the block.

    Other models make room first, as for a model of ComfyUI; afterwards the networks go where it keeps U-Nets.
    """
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(num_bytes(pipe), device)
    pipe.to(device)
    try:
        yield
    finally:
        pipe.to(comfy.model_management.unet_offload_device())


def num_bytes(pipe: Any) -> int:
    """What the networks' weights take."""
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(weight.numel() * weight.element_size() for network in networks for weight in network.parameters())


def dtype_of(name: str) -> torch.dtype:
    """The type of weights by its name; "auto" is float16 where ComfyUI would take it."""
    if name == "auto":
        device = comfy.model_management.get_torch_device()
        name = "float16" if comfy.model_management.should_use_fp16(device) else "float32"
    return getattr(torch, name)


class Progress:
    """ComfyUI's progress bar, which also stops when the user does."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._done = 0
        check_interrupted()

    def __call__(self, num_steps: int) -> None:
        """A step is done."""
        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(num_steps)
        self._done += 1
        self._bar.update_absolute(self._done, num_steps)
        check_interrupted()


def check_interrupted() -> None:
    """Raise ComfyUI's own exception if the user has stopped the queue."""
    comfy.model_management.throw_exception_if_processing_interrupted()
