"""What tests on a GPU share; they are left out where there is none (tests/conftest.py)."""

from typing import Any

import pytest
import torch

from tests.inference.conftest import build_pipeline, build_subject


def on_gpu(dtype: torch.dtype = torch.float32) -> Any:
    """A small pipeline of random weights on the GPU."""
    pipe = build_pipeline().to("cuda", dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe() -> Any:
    return on_gpu()


@pytest.fixture
def make_subject() -> Any:
    return build_subject
