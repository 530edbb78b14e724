"""Noise-damped guidance for pipelines that keep their guidance to themselves.

Such a pipeline calls its U-Net with the unconditional rows before the conditional ones, and computes
e_u + w (e_c - e_u). Given e_u' = e_u^damped and e_c' = e_u^damped + (e_c - e_u) instead, it arrives at
e_u^damped + w (e_c - e_u).
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor


def has_halves(pipe: Any) -> bool:
    """Whether a pipeline's rows are unconditional ones and then as many conditional ones, and nothing else.

    Not so with a third row for each image, of perturbed attention or of the image without the text, or with rows
    for each edit.
    """
    kind = type(pipe)
    asked = signature(kind.__call__).parameters
    has_more = hasattr(kind, "do_perturbed_attention_guidance") or {"image_guidance_scale", "editing_prompt"} & {*asked}
    return hasattr(kind, "do_classifier_free_guidance") and not has_more


def first_half(value: Any, num_rows: int) -> Any:
    """Arguments of a U-Net call, for the first half of its `num_rows` rows only.

    Tensors of a whole multiple of the rows (frames lie side by side in some) are halved; the others are shared.

    Raises:
        ValueError: the rows have no halves.
    """
    if num_rows % 2:
        raise ValueError(f"Guidance needs an even number of rows, unconditional ones first, not {num_rows}.")
    if isinstance(value, Tensor):
        has_rows = value.ndim > 0 and len(value) > 0 and len(value) % num_rows == 0
        return value[: len(value) // 2] if has_rows else value
    if isinstance(value, Mapping):
        return {key: first_half(item, num_rows) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(first_half(item, num_rows) for item in value)
    return value


def damped_output(output: Any, damped: Any) -> Any:
    """A U-Net's output with its rows as above.

    Args:
        output: of all rows, a tuple or a diffusers output.
        damped: of the unconditional rows, in the damped mode, of the same kind.
    """
    uncond, prompt = output[0].chunk(2)
    precision = torch.promote_types(uncond.dtype, torch.float32)
    base = damped[0].to(precision)
    moved = base + (prompt.to(precision) - uncond.to(precision))
    sample = torch.cat([base, moved]).to(uncond.dtype)
    return (sample, *output[1:]) if isinstance(output, tuple) else type(output)(sample=sample)
