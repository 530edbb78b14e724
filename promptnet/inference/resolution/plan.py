"""What a drawing of the one loop needs for its size."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from promptnet.inference.resolution.adapt import active_handle
from promptnet.inference.resolution.auto import automatic_settings
from promptnet.inference.resolution.layers import has_mid_block, num_depths, trained_latents, uncompiled
from promptnet.inference.resolution.rules import resolution_rules
from promptnet.inference.resolution.settings import ResolutionSettings, load_settings
from promptnet.inference.sampling.loop import Rule

Resolution = str | Path | Mapping[str, Any] | ResolutionSettings


@dataclass(frozen=True)
class SizePlan:
    """How a size is drawn.

    Args:
        sampled_px: height and width that the loop draws; the size asked, unless the image is resized afterwards.
        rules: rules that give terms their mode.
    """

    sampled_px: tuple[int, int]
    rules: list[Rule]


def plan_size(
    unet: nn.Module,
    resolution: Resolution,
    *,
    trained_size_px: tuple[int, int],
    size_px: tuple[int, int],
    num_inference_steps: int,
    multiple_px: int | None = None,
) -> SizePlan:
    """At which size an image is drawn, and with which rules.

    Args:
        unet: the network.
        resolution: "auto", which is nothing near the trained size; "off"; or settings as in `load_settings`.
        trained_size_px: height and width that the network was trained at.
        size_px: height and width wanted.
        num_inference_steps: length of the drawing.
        multiple_px: what drawn sides must be multiples of, where "auto" may draw at another size; None where it may
            not.

    Raises:
        ValueError: there are no such settings, they do not fit the network, or `adapt_resolution` is at work on it.
    """
    by_name = resolution if isinstance(resolution, str) else ""
    if by_name == "off":
        return SizePlan(size_px, [])
    if active_handle(unet) is not None:
        if by_name == "auto":
            return SizePlan(size_px, [])  # somebody adapts this network by hand
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
            multiple_px=multiple_px,
            has_mid_block=has_mid_block(unet),
        )
    else:
        settings = load_settings(resolution)
    sampled_px = settings.drawn_size_px or size_px
    rules = resolution_rules(unet, settings, trained_size_px=trained_size_px, size_px=sampled_px)
    return SizePlan(sampled_px, list(rules))
