"""Which seeds an edit is learned on, in the exactly resumable order of `promptnet.datasets.stream`."""

from __future__ import annotations

from torch.utils.data import DataLoader, Dataset

from promptnet.datasets.stream import CountedSamples, StreamBatches, dataset_index


class SeedStream(Dataset[dict[str, int]]):
    """Sample number -> which of the seeds; every epoch is one permutation of them."""

    def __init__(self, num_seeds: int, seed: int) -> None:
        self.num_seeds, self.seed = num_seeds, seed

    def __len__(self) -> int:
        return self.num_seeds

    def __getitem__(self, sample: int) -> dict[str, int]:
        return {"sample": sample, "index": dataset_index(self.seed, sample, self.num_seeds)}


class SeedDataModule(CountedSamples):
    """Batches of `index` (B,), 0 to num_seeds - 1, shared among the ranks, and `sample` (B,).

    Args:
        num_seeds: how many drawings an edit is learned on; 1 is the published setting.
        batch_size: a process and step.
        seed: of the order.
    """

    def __init__(self, num_seeds: int = 8, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__()
        if num_seeds < 1:
            raise ValueError(f"num_seeds={num_seeds} must be at least 1.")
        self.num_seeds, self.batch_size, self.seed = num_seeds, batch_size, seed

    def train_dataloader(self) -> DataLoader[dict[str, int]]:
        """Every rank's share of the endless stream, from where the run stands."""
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = StreamBatches(self.batch_size, rank=rank, num_ranks=ranks, start=self.samples_seen)
        return DataLoader(SeedStream(self.num_seeds, self.seed), batch_sampler=batches, num_workers=0)
