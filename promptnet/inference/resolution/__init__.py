"""Any size: draw larger, smaller and wider than a model was trained for, with no training.

Attn-SF (arXiv 2306.08645) and ScaleCrafter (arXiv 2310.07702) as modes and rules of the one loop, and as one line on
any diffusers pipeline with a U-Net: `adapt_resolution`.
"""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.inference.resolution.adapt import ResolutionHandle, adapt_resolution
    from promptnet.inference.resolution.attention import ScaledAttnProcessor, attention_scale
    from promptnet.inference.resolution.auto import automatic_settings
    from promptnet.inference.resolution.convolution import redilated_conv2d
    from promptnet.inference.resolution.dispersion import dispersed_kernel, dispersion_matrix, transform_matrix
    from promptnet.inference.resolution.published_files import published_names
    from promptnet.inference.resolution.rules import AdaptedResolution, NoiseDampedGuidance, resolution_rules
    from promptnet.inference.resolution.settings import ResolutionSettings, load_settings

__all__ = [
    "AdaptedResolution",
    "NoiseDampedGuidance",
    "ResolutionHandle",
    "ResolutionSettings",
    "ScaledAttnProcessor",
    "adapt_resolution",
    "attention_scale",
    "automatic_settings",
    "dispersed_kernel",
    "dispersion_matrix",
    "load_settings",
    "published_names",
    "redilated_conv2d",
    "resolution_rules",
    "transform_matrix",
]

_HOMES = {
    "AdaptedResolution": "rules",
    "NoiseDampedGuidance": "rules",
    "ResolutionHandle": "adapt",
    "ResolutionSettings": "settings",
    "ScaledAttnProcessor": "attention",
    "adapt_resolution": "adapt",
    "attention_scale": "attention",
    "automatic_settings": "auto",
    "dispersed_kernel": "dispersion",
    "dispersion_matrix": "dispersion",
    "load_settings": "settings",
    "published_names": "published_files",
    "redilated_conv2d": "convolution",
    "resolution_rules": "rules",
    "transform_matrix": "dispersion",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
