"""A complete base model with random weights on disk, and ways to run train.py for a few steps."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.people_base import write_people_base
from tests.training.forked import Runs

ROOT = Path(__file__).parents[2]
FORTY = ("--trainer.max_steps=40",)  # of the tiny run; it saves every 10 and validates every 25


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Diffusers folder of an untrained embedded model with a narrower U-Net."""
    return write_people_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def face_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of Stable Diffusion's kind with random weights, for images of 32 px."""
    from tests.base_models import write_base

    return write_base(tmp_path_factory.mktemp("face-base"), "sd")


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set: three shards of 8 images in two shapes, six of each of four people."""
    from tests.datasets.conftest import write_shard

    folder = tmp_path_factory.mktemp("faces")
    for shard in range(3):
        write_shard(folder / f"{shard}.parquet", range(8 * shard, 8 * shard + 8), [(40, 40), (30, 48)], people=4)
    return folder


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the few images of the tests are rendered once."""
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="session")
def runs() -> Iterator[Runs]:
    """Starts runs of train.py in processes of their own."""
    with Runs() as started:
        yield started


@pytest.fixture(scope="session")
def whole_run(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of 40 steps that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert runs.wait(runs.start_tiny(folder, *FORTY)) == 0, (folder / "log").read_text()[-2000:]
    return folder


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """The first of two processes of which the other does not exist: FSDP cuts weights up, and nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


def options_of(config: str, run_dir: Path, cache: Path) -> list[str]:
    """What a stage's configuration needs to run on 48 images with batches of 4, in one process."""
    return [
        *(f"--config={ROOT / 'configs' / config}.yaml", f"--run_dir={run_dir}"),
        *("--threads=1", "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.accelerator=cpu"),
        *("--data.init_args.num_images=48", "--data.init_args.num_validation=8"),
        *("--data.init_args.batch_size=4", f"--data.init_args.cache_dir={cache}"),
        "--trainer.enable_progress_bar=false",
    ]
