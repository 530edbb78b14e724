import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptnet.inference.sampling.conditions import strided

sides = st.integers(1, 40)


@given(height=sides, width=sides, new_height=sides, new_width=sides)
def test_striding_takes_latents_as_they_are_from_everywhere(height: int, width: int, new_height: int, new_width: int):
    x = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    taken = strided(x, new_height, new_width)
    assert taken.shape == (1, 1, new_height, new_width)
    rows, columns = (taken[0, 0] // width).long(), (taken[0, 0] % width).long()
    for indices, size, count in ((rows[:, 0], height, new_height), (columns[0], width, new_width)):
        middles = (torch.arange(count) + 0.5) * size / count
        assert (indices - middles).abs().max() <= 1
        assert indices.diff().min() >= 0 if count > 1 else True


def test_striding_keeps_the_variance_of_noise():
    noise = torch.randn(4, 4, 48, 64)
    assert strided(noise, 16, 16).std().item() == pytest.approx(1, abs=0.05)


def test_equal_sizes_are_left_as_they_are():
    x = torch.randn(1, 4, 8, 8)
    assert strided(x, 8, 8) is x
