"""The rows of one U-Net call, by memory that is measured."""

from collections.abc import Callable
from typing import Any

import pytest

from promptnet.serve.batch_size import DEFAULT_ROWS, MOST_ROWS, measured_rows
from tests.inference.conftest import build_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build_pipeline()


class Memory:
    """A device on which every row of a call takes as much, beside what any call takes."""

    def __init__(self, pipe: Any, free_bytes: int, row_bytes: int = 1000) -> None:
        self.free_bytes, self.row_bytes, self.asked = free_bytes, row_bytes, list[int]()
        pipe.unet.register_forward_pre_hook(lambda _, inputs: self.asked.append(len(inputs[0])))

    def peak(self, work: Callable[[], object]) -> int:
        self.asked.clear()
        work()
        return 50_000 + self.row_bytes * max(self.asked)

    def free(self) -> int:
        return self.free_bytes


@pytest.mark.parametrize(("free_bytes", "rows"), [(100_000, 80), (10_000, 8), (1_000, 1), (0, 1), (10**9, MOST_ROWS)])
def test_as_many_rows_as_fit_into_most_of_what_is_free(pipe: Any, free_bytes: int, rows: int) -> None:
    assert measured_rows(pipe, Memory(pipe, free_bytes)) == rows


def test_without_a_gpu_or_a_difference_it_is_the_default(pipe: Any) -> None:
    assert measured_rows(pipe) == DEFAULT_ROWS
    assert measured_rows(pipe, Memory(pipe, 1000, row_bytes=0)) == DEFAULT_ROWS
