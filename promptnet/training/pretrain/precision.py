"""Number formats of a pretraining step: frozen networks in the low one, the encoder's weights in float32."""

from __future__ import annotations

from typing import Any

import torch

# Lightning's precisions -> the frozen networks' format.
FROZEN_DTYPES = {"32-true": torch.float32, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def frozen_dtype(precision: str) -> torch.dtype:
    """The format of U-Net, text encoders and image encoder under one of Lightning's precisions.

    Raises:
        ValueError: under that precision the encoder's own weights would not be in float32.
    """
    if precision not in FROZEN_DTYPES:
        raise ValueError(
            f"trainer.precision={precision} is not for pretraining, which keeps the encoder's weights in float32: use "
            f"{', '.join(FROZEN_DTYPES)}"
        )
    return FROZEN_DTYPES[precision]


def place_frozen(networks: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    """Move frozen networks to a device, in the low format; the VAE, whose fp16 overflows in SDXL, stays in float32."""
    for name, network in networks.items():
        torch.nn.Module.to(network, device=device, dtype=torch.float32 if name == "vae" else dtype)
