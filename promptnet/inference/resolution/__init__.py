"""Any size: draw larger, smaller and wider than a model was trained for, with no training.

Attn-SF (arXiv 2306.08645) and ScaleCrafter (arXiv 2310.07702) as modes and rules of the one loop, and as one line on
any diffusers pipeline with a U-Net: `adapt_resolution`.
"""

from promptnet.inference.resolution.adapt import ResolutionHandle, adapt_resolution
from promptnet.inference.resolution.attention import ScaledAttnProcessor, attention_scale
from promptnet.inference.resolution.auto import automatic_settings
from promptnet.inference.resolution.convolution import redilated_conv2d
from promptnet.inference.resolution.dispersion import dispersed_kernel, dispersion_matrix, transform_matrix
from promptnet.inference.resolution.rules import AdaptedResolution, NoiseDampedGuidance, resolution_rules
from promptnet.inference.resolution.settings import ResolutionSettings, load_settings, published_names

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
