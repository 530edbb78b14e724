"""The endless order: every sample once an epoch, the same whatever the number of processes, resumable anywhere."""

from itertools import islice

import pytest
import torch

from promptnet.datasets.stream import StreamBatches, dataset_index, sample_noise, sample_seed, sample_uniform


def test_every_epoch_is_a_permutation_and_epochs_differ():
    epochs = [[dataset_index(7, epoch * 11 + position, 11) for position in range(11)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(11))
    assert epochs[0] != epochs[1] != epochs[2]


def test_ranks_share_the_stream_without_overlap():
    one = list(islice(StreamBatches(4), 6))
    two = [list(islice(StreamBatches(2, rank=rank, num_ranks=2), 6)) for rank in range(2)]
    assert [left + right for left, right in zip(*two, strict=True)] == one


def test_starting_later_continues_the_same_order():
    whole = list(islice(StreamBatches(3), 8))
    assert list(islice(StreamBatches(3, start=15), 3)) == whole[5:]


def test_noise_depends_on_seed_sample_and_purpose_alone():
    samples = torch.tensor([5, 9])
    both = sample_noise(1, samples, "noise", (2, 3))
    assert torch.equal(both[1], sample_noise(1, torch.tensor([9]), "noise", (2, 3))[0])
    assert not torch.equal(both, sample_noise(2, samples, "noise", (2, 3)))
    assert not torch.equal(both, sample_noise(1, samples, "posterior", (2, 3)))
    assert len({sample_seed(1, sample, "noise") for sample in range(1000)}) == 1000


def test_noise_is_standard_normal_and_uniforms_fill_the_interval():
    noise = sample_noise(0, torch.arange(200), "noise", (100,))
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.03
    uniform = sample_uniform(0, torch.arange(2000), "timestep")
    assert 0 <= float(uniform.min()) < 0.01
    assert 0.99 < float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.03


@pytest.mark.parametrize("arguments", [{"rank": 2, "num_ranks": 2}, {"start": -1}])
def test_impossible_shares_are_refused(arguments: dict[str, int]):
    with pytest.raises(ValueError, match="="):
        StreamBatches(4, **arguments)
    with pytest.raises(ValueError, match="batch_size=0"):
        StreamBatches(0)
