"""The smallest run that has all that a resumed one can get wrong: shuffling, flips, loader workers, EMA, validation."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from promptnet.datasets.stream import StreamBatches, dataset_index, sample_noise, sample_rng
from promptnet.training.stage import Stage
from tests.training.run.ledger import SampleLedger


class TinyImages(Dataset[dict[str, Any]]):
    """Sample number -> one of `length` random images, half of them mirrored."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self.images = torch.randn(length, 3, 8, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, sample: int) -> dict[str, Any]:
        index = dataset_index(self.seed, sample, self.length)
        flipped = sample_rng(self.seed, sample, "flip").random() < 0.5
        image = self.images[index]
        return {"sample": sample, "index": index, "pixels": image.flip(-1) if flipped else image}


class TinyData(L.LightningDataModule):
    """An endless stream of `TinyImages`, read by workers."""

    def __init__(self, length: int = 60, batch_size: int = 4, num_workers: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.data, self.batch_size, self.num_workers, self.seed = (
            TinyImages(length, seed),
            batch_size,
            num_workers,
            seed,
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        trainer: Any = self.trainer
        seen = trainer.global_step * trainer.accumulate_grad_batches * self.batch_size * trainer.world_size
        batches = StreamBatches(self.batch_size, rank=trainer.global_rank, num_ranks=trainer.world_size, start=seen)
        return DataLoader(self.data, batch_sampler=batches, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(self.data, batch_size=20)


class TinyStage(Stage):
    """Takes noise that the sample numbers determine out of images again."""

    def __init__(
        self,
        width: int = 768,
        pause_s: float = 0.01,
        slow_validation_s: float = 0.0,
        slow_end_s: float = 0.0,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.pause_s, self.slow_validation_s, self.slow_end_s = pause_s, slow_validation_s, slow_end_s
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.layers = nn.Sequential(nn.Linear(192, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, 192))

    def _loss(self, batch: dict[str, Any]) -> torch.Tensor:
        pixels = batch["pixels"].flatten(1)  # (B, 192)
        noise = sample_noise(0, batch["sample"].cpu(), "noise", (192,)).to(pixels)
        return F.mse_loss(self.layers(pixels + noise), noise)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        time.sleep(self.pause_s)  # so that moments to kill it at are not all in its start
        return self._loss(batch)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.slow_validation_s and not self.trainer.sanity_checking:
            time.sleep(self.slow_validation_s)
        self.log("val/loss", self._loss(batch))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            loss = float(self.trainer.callback_metrics["val/loss"])
            print(f"validated at step {self.trainer.global_step}: {loss.hex()}", flush=True)
            time.sleep(self.slow_end_s)


class LossLedger(SampleLedger):
    """Notes the loss too, to the last bit."""

    def entry(self, outputs: Any, batch: Any) -> dict[str, Any]:
        return {**super().entry(outputs, batch), "loss": float(outputs["loss"]).hex()}
