"""Trained parts leave the run as folders that diffusers and transformers read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_half(model: Any, folder: str | Path) -> None:
    """Write a model as float16 safetensors with its config.

    Weights are of order one, so half precision costs nothing that `promptnet evaluate base` can see, and it halves what
    the embedded model adds to the repository's history.
    """
    nn.Module.to(
        model, torch.float16
    )  # not model.to: diffusers warns of modules to keep in float32, and there are none
    model.save_pretrained(str(folder))
