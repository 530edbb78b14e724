from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from promptnet.inference.sampling.fusion import FusionSampling, fuse, renoised_share
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, Condition, References, Refinement
from promptnet.inference.sampling.loop import UNetInputs, sample
from promptnet.inference.sampling.schedule import plan, to_noise

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (2, 4, 3, 3)

levels = st.floats(0.0, 0.999)
rises = st.floats(0.001, 1.0)
etas = st.floats(0.0, 1.0)


def between(alpha: float, rise: float) -> float:
    """A level b in (a, 1]."""
    return min(1.0, alpha + rise * (1 - alpha))


def two_stages(x: Tensor, e: Tensor, a: float, b: float, variance: float) -> tuple[Tensor, float]:
    """Mean and variance of a stochastic DDIM step to b, then a draw of q_sigma(x_t | x_prev, x0-hat) back to a.

    The draw back is Bayes' rule on q_sigma's two Gaussians, x_t given x_0 and x_prev given x_t and x_0.
    """
    x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
    slope = ((1 - b - variance) / (1 - a)) ** 0.5  # of x_prev's mean in x_t
    prev_mean = b**0.5 * x0 + (1 - b - variance) ** 0.5 * e
    gain = (1 - a) * slope / ((1 - a) * slope**2 + variance)  # covariance over variance of x_prev
    back_mean = a**0.5 * x0 + gain * (prev_mean - b**0.5 * x0)
    back_variance = (1 - a) - gain * slope * (1 - a)
    return back_mean, back_variance + gain**2 * variance


@given(alpha=st.floats(0.001, 0.999), rise=st.floats(0.001, 0.999), eta=st.floats(0.01, 1.0))
@example(alpha=0.5, rise=0.2, eta=1.0)
def test_fuse_has_mean_and_variance_of_the_two_stage_form(alpha: float, rise: float, eta: float):
    x, e, noise = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha_prev = between(alpha, rise)
    r = renoised_share(alpha, alpha_prev, eta)
    assert isinstance(r, float)
    mean, variance = two_stages(x, e, alpha, alpha_prev, r * (1 - alpha_prev))
    fused = fuse(x, e, 0 * noise, alpha=alpha, alpha_prev=alpha_prev, eta=eta)
    torch.testing.assert_close(fused, mean, rtol=1e-9, atol=1e-9)
    spread = fuse(x, e, noise, alpha=alpha, alpha_prev=alpha_prev, eta=eta) - fused
    torch.testing.assert_close(spread, variance**0.5 * noise, rtol=1e-6, atol=1e-9)


@given(alpha=levels, rise=rises, eta=etas)
@example(alpha=0.0, rise=0.3, eta=1.0)
@example(alpha=0.0, rise=1.0, eta=1.0)
@example(alpha=0.999, rise=1.0, eta=1.0)
def test_fuse_keeps_the_noise_level(alpha: float, rise: float, eta: float):
    """From x_t = sqrt(a) x_0 + sqrt(1-a) e with the true e, the result is x_0 at the same level, at either end too."""
    x0, e, noise = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * e
    fused = fuse(x, e, 0 * noise, alpha=alpha, alpha_prev=between(alpha, rise), eta=eta)
    noise_gain = fuse(0 * x, 0 * e, torch.ones_like(noise), alpha=alpha, alpha_prev=between(alpha, rise), eta=eta)
    e_gain = fused - alpha**0.5 * x0
    assert torch.isfinite(fused).all()
    kept = (e_gain / e).mean()
    torch.testing.assert_close(e_gain, kept * e)
    torch.testing.assert_close(kept**2 + noise_gain**2, torch.full_like(noise, 1 - alpha))


@given(alpha=levels, rise=rises, eta=etas)
def test_the_renoised_share_is_a_share(alpha: float, rise: float, eta: float):
    r = renoised_share(alpha, between(alpha, rise), eta)
    assert isinstance(r, float)
    assert 0 <= r <= 1 + 1e-12


def test_at_pure_noise_and_at_the_last_step_all_noise_is_exchanged():
    x, e, noise = torch.randn(3, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(fuse(x, x, noise, alpha=0.0, alpha_prev=0.4), noise)
    x0_hat = x - 0.3**0.5 * e  # times sqrt(a)
    torch.testing.assert_close(fuse(x, e, noise, alpha=0.7, alpha_prev=1.0), x0_hat + 0.3**0.5 * noise)


def test_levels_may_be_tensors_one_for_each_row():
    x, e, noise = torch.randn(3, *SHAPE, dtype=torch.float64)
    alphas, alphas_prev = torch.tensor([0.2, 0.5]).double(), torch.tensor([0.4, 1.0]).double()
    rows = fuse(x, e, noise, alpha=alphas.view(2, 1, 1, 1), alpha_prev=alphas_prev.view(2, 1, 1, 1), eta=0.7)
    for row in range(2):
        a, b = float(alphas[row]), float(alphas_prev[row])
        torch.testing.assert_close(rows[row], fuse(x[row], e[row], noise[row], alpha=a, alpha_prev=b, eta=0.7))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"alpha": 0.5, "alpha_prev": 0.4}, "alpha=0.5, alpha_prev=0.4"),
        ({"alpha": -0.1, "alpha_prev": 0.4}, "alpha=-0.1"),
        ({"alpha": 1.0, "alpha_prev": 1.0}, "alpha < 1"),
        ({"alpha": 0.0, "alpha_prev": 0.0}, "alpha_prev > 0"),
        ({"alpha": 0.5, "alpha_prev": 1.1}, "alpha_prev=1.1"),
        ({"alpha": float("nan"), "alpha_prev": 1.0}, "nan"),
        ({"alpha": 0.5, "alpha_prev": 0.6, "eta": 1.5}, "1.5"),
        ({"alpha": 0.5, "alpha_prev": 0.6, "eta": -1.0}, "-1.0"),
    ],
)
def test_levels_outside_their_range_are_refused(levels: dict[str, float], message: str):
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=message):
        fuse(x, x, x, **levels)


def test_to_noise_inverts_v():
    x0, e = torch.randn(2, *SHAPE, dtype=torch.float64)
    for a in (0.0, 0.3, 0.99):
        x = a**0.5 * x0 + (1 - a) ** 0.5 * e
        v = a**0.5 * e - (1 - a) ** 0.5 * x0
        torch.testing.assert_close(to_noise(v, x, a, "v_prediction"), e)
        assert to_noise(e, x, a, "epsilon") is e


class Denoiser(nn.Module):
    """Predicts, in closed form, the noise for data around a point that its condition names: x_0 ~ N(c, 0.25)."""

    def __init__(self, scheduler: Any, prediction: str) -> None:
        super().__init__()
        self.alphas = {float(s.timestep): s.alpha for s in plan(scheduler)}
        self.prediction = prediction
        self.num_rows: list[int] = []

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.num_rows.append(len(x))
        a = self.alphas[float(t)]
        centre = encoder_hidden_states[:, :1, :1, None]
        away = (x - a**0.5 * centre) / (0.25 * a + 1 - a)
        noise, x0 = (1 - a) ** 0.5 * away, centre + 0.25 * a**0.5 * away
        return (noise if self.prediction == "epsilon" else a**0.5 * noise - (1 - a) ** 0.5 * x0,)


def condition(*values: float, rows: Tensor) -> Condition:
    return Condition(lambda x, step: UNetInputs(torch.tensor(values).double()[:, None, None]), rows)


class Draws:
    """A fixed sequence of noises; remembers what was asked for."""

    def __init__(self, seed: int = 5) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(x.dtype)


def rules(draws: Callable[[Tensor], Tensor], prediction: str, rows: Tensor, **fusion: Any) -> list[Any]:
    uncond = condition(*[0.5] * len(rows), rows=rows)
    references = References(rows, [condition(*[2.0] * len(rows), rows=rows)], torch.ones(len(rows), 1).double())
    return [
        Refinement(uncond, references, condition(*[1.0] * len(rows), rows=rows), subject_scale=2.0, class_scale=1.0),
        FusionSampling(uncond, references, draws, prediction, **{"scale": 3.0, **fusion}),
    ]


def draw(scheduler: Any, x: Tensor, prediction: str, num_steps: int = 10, **fusion: Any) -> tuple[Tensor, Denoiser]:
    scheduler.set_timesteps(num_steps)
    unet = Denoiser(scheduler, prediction)
    return sample(unet, scheduler, x, rules(Draws(), prediction, torch.arange(len(x)), **fusion)), unet


def schedulers(**more: Any) -> Iterator[Any]:
    config = {**BETAS, "timestep_spacing": "trailing", **more}
    yield DDIMScheduler(**config, clip_sample=False)
    yield EulerDiscreteScheduler(**config)


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_ddim_and_euler_epsilon_and_v_draw_the_same(iterations: int):
    """Four ways to say one thing: Euler's latents are re-noised in their own scale, v is turned into noise."""
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for prediction in ("epsilon", "v_prediction"):
        for scheduler in schedulers(prediction_type=prediction):
            scheduler.set_timesteps(10)
            start = x * plan(scheduler)[0].scale
            found.append(draw(scheduler, start, prediction, num_iterations=iterations)[0].double())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


def test_fusion_changes_the_result():
    x = torch.randn(SHAPE, dtype=torch.float64)
    scheduler = next(schedulers())
    plain, _ = draw(scheduler, x, "epsilon", num_iterations=0)
    fused, _ = draw(scheduler, x, "epsilon", num_iterations=1)
    assert (plain - fused).abs().max() > 0.01


def test_zero_terminal_snr_starts_finite():
    x = torch.randn(SHAPE, dtype=torch.float64)
    scheduler = next(schedulers(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    fused, unet = draw(scheduler, x, "v_prediction", num_iterations=1)
    assert torch.isfinite(fused).all()
    assert unet.num_rows == [4, 6] * 10


@pytest.mark.parametrize(
    ("until", "expected"), [(1.0, [4, 6] * 4), (0.5, [4, 6, 4, 6, 6, 6]), (0.25, [4, 6, 6, 6, 6]), (0.0, [6] * 4)]
)
def test_only_the_noisy_steps_are_fused(until: float, expected: list[int]):
    scheduler = next(schedulers())
    _, unet = draw(scheduler, torch.zeros(SHAPE).double(), "epsilon", num_steps=4, until=until)
    assert unet.num_rows == expected


def test_nothing_is_evaluated_or_drawn_where_nothing_is_exchanged():
    scheduler = next(schedulers())
    scheduler.set_timesteps(4)
    draws, unet = Draws(), Denoiser(scheduler, "epsilon")
    sample(unet, scheduler, torch.zeros(SHAPE).double(), rules(draws, "epsilon", torch.arange(2), eta=0.0))
    assert unet.num_rows == [6] * 4
    assert not draws.shapes


def test_rows_without_a_subject_are_left_alone():
    """Row 1 of three has no subject: it comes out as if it were alone, and no noise is drawn for it."""
    x = torch.randn(3, *SHAPE[1:], dtype=torch.float64)
    scheduler = next(schedulers())
    scheduler.set_timesteps(6)
    one = torch.tensor([1])
    plain = ClassifierFreeGuidance(condition(0.1, rows=one), condition(-1.0, rows=one), scale=2.0)
    draws = Draws()
    mixed = sample(
        Denoiser(scheduler, "epsilon"),
        scheduler,
        x,
        [plain, *rules(draws, "epsilon", torch.tensor([0, 2]))],
    )
    assert set(draws.shapes) == {(2, *SHAPE[1:])}
    first = torch.tensor([0])
    plain = ClassifierFreeGuidance(condition(0.1, rows=first), condition(-1.0, rows=first), scale=2.0)
    alone = sample(Denoiser(scheduler, "epsilon"), scheduler, x[1:2], [plain])
    torch.testing.assert_close(mixed[1:2], alone)
    others = sample(Denoiser(scheduler, "epsilon"), scheduler, x[[0, 2]], rules(Draws(), "epsilon", torch.arange(2)))
    torch.testing.assert_close(mixed[[0, 2]], others)


def test_several_reference_images_are_averaged_by_their_weights():
    rows = torch.tensor([0, 1])
    images = [condition(2.0, 2.0, rows=rows), condition(-1.0, rows=torch.tensor([1]))]
    references = References(rows, images, torch.tensor([[4.0, 0.0], [1.0, 3.0]]).double())
    rule = FusionSampling(condition(0.5, 0.5, rows=rows), references, Draws(), "epsilon", scale=3.0)
    scheduler = next(schedulers())
    scheduler.set_timesteps(2)
    step = plan(scheduler)[0]
    uncond, first, second = rule.terms([], replace(step, stage="fusion"))
    assert uncond.weight == -2
    assert isinstance(first.weight, Tensor)
    assert first.weight.tolist() == [3.0, 0.75]
    assert second.weight == 2.25
    assert second.rows is not None
    assert second.rows.tolist() == [1]
