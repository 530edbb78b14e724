import pytest
import torch
from diffusers import DDIMScheduler

from promptnet.inference.sampling.schedule import to_noise
from promptnet.inference.tuning.loss import (
    denoising_target,
    held_out_timesteps,
    masked_error,
    noised,
    training_timesteps,
)

SCHEDULER = DDIMScheduler(rescale_betas_zero_snr=True)


def latents_noise_times(count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    times = torch.tensor([0, 1, 250, 500, 998, 999][:count])
    return torch.randn(count, 4, 3, 5), torch.randn(count, 4, 3, 5), times


def test_noising_is_the_schedulers():
    x, noise, times = latents_noise_times()
    found = noised(x, noise, SCHEDULER.alphas_cumprod[times])
    torch.testing.assert_close(found, SCHEDULER.add_noise(x, noise, times))  # type: ignore[arg-type]
    torch.testing.assert_close(found[-1], noise[-1])  # zero terminal signal


def test_the_v_target_is_the_schedulers():
    x, noise, times = latents_noise_times()
    found = denoising_target(x, noise, SCHEDULER.alphas_cumprod[times], "v_prediction")
    torch.testing.assert_close(found, SCHEDULER.get_velocity(x, noise, times))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_means_the_noise_that_was_added(kind):
    x, noise, times = latents_noise_times()
    for i, alpha in enumerate(SCHEDULER.alphas_cumprod[times]):
        noisy = noised(x[i : i + 1], noise[i : i + 1], alpha[None])
        target = denoising_target(x[i : i + 1], noise[i : i + 1], alpha[None], kind)
        torch.testing.assert_close(to_noise(target, noisy, float(alpha), kind), noise[i : i + 1], atol=1e-5, rtol=1e-5)


def test_the_error_counts_only_where_the_image_is():
    output, target = torch.randn(2, 4, 3, 5, requires_grad=True), torch.randn(2, 4, 3, 5)
    mask = torch.zeros(2, 1, 3, 5)
    mask[0, 0, 1:, 2:] = 1
    mask[1] = 1
    errors = masked_error(output, target, mask)
    torch.testing.assert_close(errors[0], (output - target)[0, :, 1:, 2:].square().mean())
    torch.testing.assert_close(errors[1], (output - target)[1].square().mean())
    (gradient,) = torch.autograd.grad(errors.sum(), output)
    assert (gradient[0, :, :1] == 0).all()
    assert (gradient[0, :, :, :2] == 0).all()
    assert (gradient[0, :, 1:, 2:] != 0).all()


def test_a_view_without_any_whole_cell_has_no_error():
    assert masked_error(torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 2, 2)) == 0


def test_held_out_levels_lie_in_the_middle_of_equal_parts():
    assert held_out_timesteps(1000).tolist() == [125, 375, 625, 875]
    assert held_out_timesteps(8).tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_training_levels_are_uniform_spread_and_never_held_out(batch_size):
    generator, held_out = torch.Generator().manual_seed(0), held_out_timesteps(40)
    draws = torch.stack([training_timesteps(batch_size, 40, held_out, generator) for _ in range(4000 // batch_size)])
    counts = torch.bincount(draws.flatten(), minlength=40)
    assert (counts[held_out] == 0).all()
    rest = counts[~torch.isin(torch.arange(40), held_out)].float()
    assert (rest / rest.mean() - 1).abs().max() < 0.45  # about 110 draws each
    ranks = torch.searchsorted(torch.arange(40)[counts > 0], draws.sort(dim=1).values)  # among the 36 others
    parts = torch.arange(batch_size) * 36 / batch_size
    assert (ranks > parts - 1).all()
    assert (ranks <= parts + 36 / batch_size).all()  # one from each of as many equal parts
    if batch_size > 1:
        assert (draws[:, 0] < draws[:, 1]).float().mean() < 0.6  # no level has its own place in the batch
