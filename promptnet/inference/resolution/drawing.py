"""What a drawing of the one loop needs for its size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from promptnet.inference.resolution.automatic import automatic_settings
from promptnet.inference.resolution.damping import resolution_rules
from promptnet.inference.resolution.handle import active_handle
from promptnet.inference.resolution.layers import num_depths, trained_latents, uncompiled
from promptnet.inference.resolution.settings import ResolutionSettings, load_settings
from promptnet.inference.sampling import Rule

Resolution = str | Path | Mapping[str, Any] | ResolutionSettings


def rules_for_size(
    unet: nn.Module,
    resolution: Resolution,
    *,
    trained_size_px: tuple[int, int],
    size_px: tuple[int, int],
    num_inference_steps: int,
) -> list[Rule]:
    """Rules that stand after all others: they give terms their mode.

    Args:
        unet: the network.
        resolution: "auto", which is nothing near the trained size; "off"; or settings as in `load_settings`.
        trained_size_px: height and width that the network was trained at.
        size_px: height and width wanted.
        num_inference_steps: length of the drawing.

    Raises:
        ValueError: there are no such settings, they do not fit the network, or `adapt_resolution` is at work on it.
    """
    by_name = resolution if isinstance(resolution, str) else ""
    if by_name == "off":
        return []
    if active_handle(unet) is not None:
        if by_name == "auto":
            return []  # somebody adapts this network by hand
        raise ValueError(
            "The U-Net is adapted by adapt_resolution already: remove() that handle, or draw with resolution='auto'."
        )
    if by_name == "auto":
        settings = automatic_settings(
            num_depths(uncompiled(unet)),
            trained_size_px,
            size_px,
            num_inference_steps,
            trained_latents=trained_latents(unet),
        )
    else:
        settings = load_settings(resolution)
    return list(resolution_rules(unet, settings, trained_size_px=trained_size_px, size_px=size_px))
