"""Training data of a true shape without an image: features as they are computed beforehand, but of noise."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from promptnet.datasets.stream import CountedSamples, StreamBatches, sample_noise


class FeatureRows(Dataset[dict[str, Any]]):
    """Sample number -> features of one image, reference and target alike; a function of the number alone.

    Args:
        base: folder of the base model, image encoder included, whose shapes they have.
    """

    def __init__(self, base: Path) -> None:
        unet, vision = (json.loads((base / part / "config.json").read_text()) for part in ("unet", "image_encoder"))
        side = unet["sample_size"]
        self.moments_shape = (2 * unet["in_channels"], side, side)
        self.vision_shape = ((vision["image_size"] // vision["patch_size"]) ** 2 + 1, vision["hidden_size"])

    def __getitem__(self, sample: int) -> dict[str, Any]:
        number = torch.tensor([sample])
        return {
            "sample": sample,
            "prompt": "a photo of S*",
            "reference_moments": sample_noise(0, number, "moments", self.moments_shape)[0],
            "reference_vision": sample_noise(0, number, "vision", self.vision_shape)[0],
        }


class RandomFeatures(CountedSamples):
    """An endless stream of `FeatureRows`.

    Args:
        base_dir: folder of the base model.
        batch_size: a process and step.
    """

    def __init__(self, base_dir: str, batch_size: int = 8) -> None:
        super().__init__()
        self.rows, self.batch_size = FeatureRows(Path(base_dir)), batch_size

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return every rank's share of the stream, from where the run stands."""
        trainer: Any = self.trainer
        batches = StreamBatches(
            self.batch_size, rank=trainer.global_rank, num_ranks=trainer.world_size, start=self.samples_seen
        )
        return DataLoader(self.rows, batch_sampler=batches)
