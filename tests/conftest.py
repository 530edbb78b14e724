"""Every test but those marked gpu runs offline, on the CPU, with one thread and known seeds."""

import itertools
import os
import sys

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    DIFFUSERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MPLBACKEND="Agg",
    # Only a run of `-m gpu` sees a GPU; all other tests are on the CPU.
    **({} if ("-m", "gpu") in itertools.pairwise(sys.argv) else {"CUDA_VISIBLE_DEVICES": ""}),
)
os.environ.pop("PROMPTNET_DEBUG", None)

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked gpu where there is no GPU: a skipped test would look like one that was run."""
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


@pytest.fixture(autouse=True)
def known_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Training flushes them to zero for the whole process, in which other tests want them."""
    yield
    torch.set_flush_denormal(False)
