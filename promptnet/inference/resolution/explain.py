"""What an adaptation does, as a table for people."""

import math

from torch import nn

from promptnet.inference.resolution.attention import query_scale
from promptnet.inference.resolution.auto import is_far
from promptnet.inference.resolution.layers import spatial_attentions, spatial_convolutions
from promptnet.inference.resolution.mode import Adaptation, layer_depths, problem_of
from promptnet.inference.resolution.settings import ResolutionSettings


def explanation(
    network: nn.Module,
    adaptation: Adaptation,
    latent_size: tuple[int, int],
    num_inference_steps: int | None,
    *,
    damps: bool,
) -> str:
    """Layer, depth, factor, active steps; a column for the damped pass where there is one.

    Args:
        network: the plain network.
        adaptation: settings checked against it.
        latent_size: height and width of the latents that are drawn.
        num_inference_steps: length of the drawing, None for always active.
        damps: whether guidance is damped.
    """
    settings, (height, width) = adaptation.settings, adaptation.size_px
    lines = [
        f"{settings.name}: {width}x{height} pixels, trained at "
        f"{adaptation.trained_size_px[1]:g}x{adaptation.trained_size_px[0]:g}"
    ]
    if settings.is_plain:
        return f"{lines[0]}\nnothing is adapted{_why_plain(adaptation)}"
    lines += _convolutions(network, adaptation, num_inference_steps, damps=damps)
    lines.append(problem_of(network, spatial_convolutions(network), adaptation.factors))
    lines.append(_progression(settings))
    lines.append(_damping(settings, num_inference_steps, damps=damps))
    lines.append(_attention(network, adaptation, latent_size))
    return "\n".join(line for line in lines if line)


def _why_plain(adaptation: Adaptation) -> str:
    sides = zip(adaptation.size_px, adaptation.trained_size_px, strict=True)
    is_near = not any(is_far(asked / trained) for asked, trained in sides)
    return ": the size is near the trained one" if is_near else ": these settings change nothing"


def _convolutions(
    network: nn.Module, adaptation: Adaptation, num_inference_steps: int | None, *, damps: bool
) -> list[str]:
    settings = adaptation.settings
    named = {**adaptation.factors, **(adaptation.damped_factors if damps else {})}
    rows = [("layer", "depth", "factor", "active steps", "damped pass" if damps else "")]
    for name, depth in layer_depths(network, named).items():
        factor = _factor(adaptation.factors.get(name))
        if name in adaptation.dispersed and settings.dispersed_steps:
            factor += " dispersed"
        steps = _steps(settings.active_steps, settings, num_inference_steps) if factor != "-" else "-"
        rows.append((name, str(depth), factor, steps, _factor(adaptation.damped_factors.get(name)) if damps else ""))
    if len(rows) == 1:
        return ["convolutions: plain"]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _factor(factor: tuple[float, float] | None) -> str:
    if factor is None:
        return "-"
    vertical, horizontal = (f"{value:.4g}" for value in factor)
    return vertical if vertical == horizontal else f"{vertical} high, {horizontal} wide"


def _steps(count: int, settings: ResolutionSettings, num_inference_steps: int | None) -> str:
    if num_inference_steps is None:
        return "all" if count else "none"
    last = math.ceil(count / settings.num_steps * num_inference_steps - 1e-6)
    return f"first {last} of {num_inference_steps}" if last else "none"


def _progression(settings: ResolutionSettings) -> str:
    return "" if settings.progressive == "no" else f"factors fall over the active steps ({settings.progressive})"


def _damping(settings: ResolutionSettings, num_inference_steps: int | None, *, damps: bool) -> str:
    if not settings.damped_steps:
        return ""
    if not damps:
        return "noise-damped guidance: asked for, but not possible here"
    return f"noise-damped guidance: {_steps(settings.damped_steps, settings, num_inference_steps)}"


def _attention(network: nn.Module, adaptation: Adaptation, latent_size: tuple[int, int]) -> str:
    if not adaptation.settings.attention:
        return "self-attention: plain"
    layers = spatial_attentions(network).values()
    parts = []
    for depth in sorted({layer.depth for layer in layers}):
        tokens = math.prod(-(-side // 2**depth) for side in latent_size)
        parts.append(f"{query_scale(tokens, adaptation.area_ratio):.3f} at depth {depth}")
    return f"self-attention: logits times {', '.join(parts)}, all steps" if parts else "self-attention: none"
