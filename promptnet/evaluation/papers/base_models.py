"""Base models of a table: checked by their files, and loaded when the first image needs them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.renderer import image_size, weight_hashes
from promptnet.evaluation.papers.config import ConfigError


def check_folder(base: str) -> Path:
    """Return a base model's folder.

    Raises:
        ValueError: it is none in diffusers layout.
    """
    folder = Path(base)
    if not (folder / "model_index.json").is_file():
        raise ConfigError(f"base model '{base}' is no folder in diffusers layout (with model_index.json): download it")
    image_size(folder)
    return folder


def check_network(name: str, folder: str | None) -> None:
    """Check a network's folder that a config names.

    Raises:
        ValueError: it has no config.json.
    """
    if folder is not None and not (Path(folder) / "config.json").is_file():
        raise ConfigError(f"{name} '{folder}' is no folder of a network: it has no config.json")


def hash_of(folder: str | Path | None) -> str | None:
    """Return a hash of the weights in a folder, a base model's without its encoders; None for no folder."""
    return None if folder is None or not Path(folder).is_dir() else weight_hashes(folder, [])["base"]


def load_pipe(
    base: str | Path,
    device: str,
    dtype: str = "float32",
    scheduler: str = "DDIMScheduler",
    promptnet: str | None = None,
    image_encoder: str | None = None,
) -> Any:
    """Load a pipeline without progress bars.

    Args:
        base: folder of the base model.
        device: where it draws.
        dtype: of its networks.
        scheduler: that draws.
        promptnet: folder of the encoder; None is the base model's own.
        image_encoder: folder of the CLIP image encoder; None is the base model's own.
    """
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionModel

    from promptnet import PromptNetPipeline
    from promptnet.inference.editing.inversion import converted_scheduler

    torch.set_flush_denormal(True)  # small models crawl through denormal numbers on a CPU
    kind = getattr(torch, dtype)
    parts: dict[str, Any] = {} if promptnet is None else {"promptnet": promptnet}
    if image_encoder is not None:
        parts["image_encoder"] = CLIPVisionModel.from_pretrained(image_encoder, use_safetensors=True, dtype=kind)
        parts["feature_extractor"] = CLIPImageProcessor.from_pretrained(image_encoder)
    pipe: Any = PromptNetPipeline.from_pretrained(base, use_safetensors=True, dtype=kind, **parts).to(device)
    pipe.set_progress_bar_config(disable=True)
    if type(pipe.scheduler).__name__ != scheduler:
        pipe.scheduler = converted_scheduler(scheduler, pipe.scheduler.config)
    return pipe


def shape_of_unet(base: Path) -> Any:
    """Return a base model's U-Net without weights."""
    import torch
    from diffusers import UNet2DConditionModel

    config: Any = UNet2DConditionModel.load_config(base / "unet")
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


class Latest:
    """Keep the last few things that were made, by name: networks and subjects are large."""

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def get(self, name: str, make: Any) -> Any:
        """Return a thing, made if it is not kept."""
        if name not in self._kept:
            while len(self._kept) >= self.most:
                self._kept.popitem(last=False)
            self._kept[name] = make()
        self._kept.move_to_end(name)
        return self._kept[name]
