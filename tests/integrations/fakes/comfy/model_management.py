"""Devices, memory and the stop button: the queue is stopped after as many checks as `stop_after` says."""

import torch


class InterruptProcessingException(Exception):
    pass


freed: list[tuple[int, torch.device]] = []
stop_after: int | None = None
num_checks = 0


def get_torch_device() -> torch.device:
    return torch.device("cpu")


def unet_offload_device() -> torch.device:
    return torch.device("cpu")


def should_use_fp16(device: torch.device | None = None) -> bool:
    return False


def free_memory(memory_required: int, device: torch.device, keep_loaded: object = ()) -> None:
    freed.append((memory_required, device))


def throw_exception_if_processing_interrupted() -> None:
    global num_checks
    num_checks += 1
    if stop_after is not None and num_checks > stop_after:
        raise InterruptProcessingException
