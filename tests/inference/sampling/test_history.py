"""Multistep solvers whose latents are noised again, against brute force on a mixture whose exact score is known."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from promptnet.inference.sampling.fusion import FusionSampling
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, Condition, References, Refinement
from promptnet.inference.sampling.loop import UNetInputs, sample
from promptnet.inference.sampling.schedule import Step, plan

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EVEN: dict[str, Any] = {**BETAS, "use_exponential_sigmas": True}  # even in lambda, as the theory of the order has it
SHAPE = (4, 2, 2)  # (C, h, w)
CENTRES, VARIANCE = (-1.0, 1.0), 0.4

DPM, UNIPC, EULER = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"
ANCESTRAL, DDIM = "EulerAncestralDiscreteScheduler", "DDIMScheduler"


def exact_noise(x: Tensor, a: float | Tensor, shift: float | Tensor = 0.0) -> Tensor:
    """E[e | x_t] of the mixture 0.5 N(c_0 + shift, v) + 0.5 N(c_1 + shift, v) in each value of x_t."""
    spread = a * VARIANCE + 1 - a
    away = torch.stack([x - a**0.5 * (centre + shift) for centre in CENTRES])
    share = torch.softmax(-(away**2) / (2 * spread), dim=0)
    return (1 - a) ** 0.5 * (share * away).sum(dim=0) / spread


class Mixture(nn.Module):
    """The exact denoiser; its condition holds a and the shift, row by row."""

    def __init__(self, prediction: str = "epsilon") -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        a, shift = encoder_hidden_states[:, :, None, None, None].unbind(dim=1)  # (B, 1, 1, 1) each
        noise = exact_noise(x, a, shift)
        clean = (x - (1 - a) ** 0.5 * noise) / a**0.5
        return (noise if self.prediction == "epsilon" else a**0.5 * noise - (1 - a) ** 0.5 * clean,)


def under(shift: float, rows: Tensor) -> Condition:
    return Condition(lambda x, step: UNetInputs(torch.tensor([[step.alpha, shift]] * len(rows)).double()), rows)


class Draws:
    """Given noises, in turn."""

    def __init__(self, noises: Sequence[Tensor]) -> None:
        self.noises = iter(noises)

    def __call__(self, x: Tensor) -> Tensor:
        return next(self.noises).to(x.dtype)


SUBJECT, CLASS = 0.4, -0.3  # how far the subject's mixture and the class's lie from the prompt's
W_FUSION, W_SUBJECT, W_CLASS = 1.4, 0.9, 0.3


def rules_for(rows: Tensor, draws: Callable[[Tensor], Tensor], prediction: str, **fusion: Any) -> list[Any]:
    references = References(rows, [under(SUBJECT, rows)], torch.ones(len(rows), 1).double())
    uncond = under(0.0, rows)
    return [
        Refinement(uncond, references, under(CLASS, rows), W_SUBJECT, W_CLASS),
        FusionSampling(uncond, references, draws, prediction, **{"scale": W_FUSION, **fusion}),
    ]


def fusion_noise(x: Tensor, a: float) -> Tensor:
    """e = e_u + w_f (e_s - e_u)."""
    plain = exact_noise(x, a)
    return plain + W_FUSION * (exact_noise(x, a, SUBJECT) - plain)


def refined_noise(x: Tensor, a: float) -> Tensor:
    """e = e_u + w_s (e_s - e_u) + w_c (e_c - e_u)."""
    plain = exact_noise(x, a)
    pulls = W_SUBJECT * (exact_noise(x, a, SUBJECT) - plain) + W_CLASS * (exact_noise(x, a, CLASS) - plain)
    return plain + pulls


def scheduler_of(name: str, num_steps: int, prediction: str = "epsilon", **config: Any) -> Any:
    if name == DDIM:
        config["clip_sample"] = False
    scheduler = getattr(diffusers, name)(**{**BETAS, **config}, prediction_type=prediction)
    scheduler.set_timesteps(num_steps)
    return scheduler


def draw(scheduler: Any, x: Tensor, noises: Sequence[Tensor], steps: Sequence[Step] | None = None, **fusion: Any):
    steps = plan(scheduler) if steps is None else steps
    prediction = scheduler.config.prediction_type
    rules = rules_for(torch.arange(len(x)), Draws(noises), prediction, **fusion)
    takes = "generator" in scheduler.step.__code__.co_varnames
    kwargs = {"generator": torch.Generator().manual_seed(7)} if takes else {}
    with torch.no_grad():
        return sample(Mixture(prediction), scheduler, x * steps[0].scale, rules, steps=steps, step_kwargs=kwargs)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# -- against formulas -------------------------------------------------------------------------------------------------


def fused(x: Tensor, a: float, b: float, noise: Tensor) -> Tensor:
    r = (1 - a / b) / (1 - a)
    return x - r * (1 - a) ** 0.5 * fusion_noise(x, a) + ((1 - a) * r * (2 - r)) ** 0.5 * noise


def log_snr(a: float) -> float:
    return math.inf if a == 1 else 0.5 * math.log(a / (1 - a))


def to_level(x: Tensor, a: float, b: float, output: Tensor, slope: Tensor | float) -> Tensor:
    """x_b for an x0-hat of m + slope (lambda - lambda_a), as DPM-Solver++ has it (arXiv 2211.01095, midpoint)."""
    h = log_snr(b) - log_snr(a)
    decay = math.exp(-h)
    change = 0.0 if b == 1 else 0.5 * h * slope
    return (1 - b) ** 0.5 / (1 - a) ** 0.5 * x - b**0.5 * (decay - 1) * (output + change)


def two_m(x: Tensor, levels: Sequence[tuple[float, float]], noises: Sequence[Tensor], num_fused: int) -> Tensor:
    """DPM-Solver++ 2M, first order from each latent that was noised again."""
    before: tuple[float, Tensor] | None = None
    for i, (a, b) in enumerate(levels):
        if i < num_fused:
            x, before = fused(x, a, b, noises[i]), None
        clean = (x - (1 - a) ** 0.5 * refined_noise(x, a)) / a**0.5
        slope = 0.0 if before is None else (clean - before[1]) / (log_snr(a) - before[0])
        x, before = to_level(x, a, b, clean, slope), (log_snr(a), clean)
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_fused", [0, 1, 4, 10])
def test_dpm_solver_2m_is_first_order_from_each_renoised_latent(num_fused: int, prediction: str):
    x, noises = normal(3, *SHAPE), list(normal(10, 3, *SHAPE, seed=1))
    scheduler = scheduler_of(DPM, 10, prediction)
    levels = [(step.alpha, step.alpha_prev) for step in plan(scheduler)]
    found = draw(scheduler, x, noises, until=num_fused / 10, num_iterations=1)
    torch.testing.assert_close(found, two_m(x, levels, noises, num_fused), rtol=2e-5, atol=2e-5)


OTHER_STATES = [
    pytest.param(DPM, {"solver_order": 3}, id="third-order"),
    pytest.param(DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, id="memory-of-noise"),
    pytest.param(DPM, {"solver_type": "heun", "use_karras_sigmas": True}, id="heun-karras"),
    pytest.param(UNIPC, {}, id="unipc"),
    pytest.param(UNIPC, {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, id="unipc-3"),
    pytest.param(UNIPC, {"solver_order": 1}, id="unipc-1"),
    pytest.param(UNIPC, {"predict_x0": False, "final_sigmas_type": "sigma_min"}, id="unipc-memory-of-noise"),
]


@pytest.mark.parametrize(("name", "config"), OTHER_STATES)
def test_where_every_step_is_fused_each_solver_is_ddim(name: str, config: dict[str, Any]):
    """DPM-Solver's first order is DDIM; UniPC's corrector must leave the re-noised latents what they are."""
    x, noises = normal(3, *SHAPE), list(normal(10, 3, *SHAPE, seed=1))
    scheduler = scheduler_of(name, 10, **config)
    found = draw(scheduler, x, noises, num_iterations=1)
    expected = x
    for (a, b), noise in zip([(s.alpha, s.alpha_prev) for s in plan(scheduler)], noises, strict=True):
        expected = fused(expected, a, b, noise) if a < b else expected
        e = refined_noise(expected, a)
        expected = b**0.5 * (expected - (1 - a) ** 0.5 * e) / a**0.5 + (1 - b) ** 0.5 * e
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "config"), OTHER_STATES)
def test_after_the_last_fused_step_a_solver_goes_on_as_from_a_beginning(name: str, config: dict[str, Any]):
    """Drawn whole with two fused steps, or begun at the second of them: the memory starts there."""
    x, noises = normal(3, *SHAPE), list(normal(2, 3, *SHAPE, seed=1))
    config = {**config, "lower_order_final": False}
    caught: list[Tensor] = []
    scheduler = scheduler_of(name, 8, **config)
    steps = plan(scheduler)

    def keep(x: Tensor, step: Step) -> Tensor:
        caught.append(x)
        return x

    rules = rules_for(torch.arange(3), Draws(noises), "epsilon", until=0.25, num_iterations=1)
    with torch.no_grad():
        whole = sample(Mixture(), scheduler, x, rules, steps=steps, on_step_end=keep)
    begun = scheduler_of(name, 8, **config)
    begun.set_begin_index(1)
    found = draw(begun, caught[0], noises[1:], steps[1:], until=0.25, num_iterations=1)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [(DPM, {}), (DPM, {"algorithm_type": "sde-dpmsolver++"}), (UNIPC, {}), (EULER, {}), (ANCESTRAL, {})],
)
def test_rows_without_a_subject_keep_their_memory(name: str, config: dict[str, Any]):
    """An image of a batch does not depend on whether the others are fused."""
    x = normal(3, *SHAPE)
    plain, held = torch.tensor([0]), torch.tensor([1, 2])
    guidance = ClassifierFreeGuidance(under(0.0, plain), under(0.2, plain), 2.0)

    def images(rules: list[Any], start: Tensor) -> Tensor:
        scheduler = scheduler_of(name, 8, **config)
        noise = [torch.Generator().manual_seed(row) for row in range(len(start))]
        kwargs = {"generator": noise} if "generator" in scheduler.step.__code__.co_varnames else {}
        with torch.no_grad():
            return sample(Mixture(), scheduler, start * plan(scheduler)[0].scale, rules, step_kwargs=kwargs)

    fusion = rules_for(held, Draws(list(normal(4, 2, *SHAPE, seed=1))), "epsilon", until=0.5)
    together = images([guidance, *fusion], x)
    torch.testing.assert_close(together[:1], images([guidance], x[:1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [DPM, UNIPC, EULER, ANCESTRAL])
def test_equal_seeds_draw_equal_images_and_other_seeds_others(name: str):
    def image(seed: int) -> Tensor:
        return draw(scheduler_of(name, 6), normal(2, *SHAPE), list(normal(6, 2, *SHAPE, seed=seed)), num_iterations=1)

    assert torch.equal(image(1), image(1))
    assert (image(1) - image(2)).abs().max() > 0.01


# -- order of convergence ---------------------------------------------------------------------------------------------


def errors_of(name: str, counts: Sequence[int], **config: Any) -> list[float]:
    """Root mean square error where the last step begins, without fusion, against many steps of the ODE."""
    x = normal(64, *SHAPE)
    found = []
    for count in counts:
        scheduler = scheduler_of(name, count, **{**EVEN, **config})
        steps = plan(scheduler)[:-1]
        end = draw(scheduler, x, [], steps, num_iterations=0) / plan(scheduler)[-1].scale
        found.append(float((end - ode(x, steps[0].alpha, steps[-1].alpha_prev)).square().mean().sqrt()))
    return found


def ode(x: Tensor, a: float, b: float, count: int = 400) -> Tensor:
    """dx / d lambda of the probability flow for the refined prediction, by Runge and Kutta's fourth order."""

    def rate(y: Tensor, lam: float) -> Tensor:  # y = x / sqrt(a), so dy = e d sigma, sigma = exp(-lambda)
        level = 1 / (1 + math.exp(-2 * lam))
        return -math.exp(-lam) * refined_noise(y * level**0.5, level)

    start, h = log_snr(a), (log_snr(b) - log_snr(a)) / count
    y = x / a**0.5
    for i in range(count):
        lam = start + i * h
        k1 = rate(y, lam)
        k2 = rate(y + h / 2 * k1, lam + h / 2)
        k3 = rate(y + h / 2 * k2, lam + h / 2)
        k4 = rate(y + h * k3, lam + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * b**0.5


def slope(counts: Sequence[int], errors: Sequence[float]) -> float:
    """Minus the exponent of errors ~ count^-p, by least squares of logarithms."""
    xs, ys = [math.log(n) for n in counts], [math.log(e) for e in errors]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return -sum((a - mean_x) * (b - mean_y) for a, b in zip(xs, ys, strict=True)) / sum((a - mean_x) ** 2 for a in xs)


ORDERS = {EULER: 1, DPM: 2, UNIPC: 3}  # UniPC's corrector adds one to the order of its predictor, 2


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_without_fusion_errors_fall_with_the_order_of_the_solver(name: str, order: int):
    config = {} if name == EULER else {"lower_order_final": False}
    counts = (17, 33, 65)
    assert slope(counts, errors_of(name, counts, **config)) == pytest.approx(order, abs=0.2)


def brownian(num_steps: int, fine: Tensor) -> list[Tensor]:
    """The standard normal noises of few steps on the path that the noises of many steps, (N, B, C, h, w), make."""
    per_step = len(fine) // num_steps
    return [part.sum(dim=0) / per_step**0.5 for part in fine.split(per_step)]


def ancestral(x: Tensor, a: float, b: float, noise: Tensor) -> Tensor:
    """An ancestral step, arXiv 2010.02502 equation 12 with eta = 1."""
    e = refined_noise(x, a)
    variance = (1 - b) / (1 - a) * (1 - a / b)
    clean = (x - (1 - a) ** 0.5 * e) / a**0.5
    return b**0.5 * clean + (1 - b - variance) ** 0.5 * e + variance**0.5 * noise


def many_steps(x: Tensor, levels: Sequence[float], noises: Tensor, own: Tensor | None) -> Tensor:
    """Fusion and a first-order step at each of many levels; `own` is the noise of ancestral steps."""
    for i, (a, b) in enumerate(itertools.pairwise(levels)):
        x = fused(x, a, b, noises[i])
        if own is not None:
            x = ancestral(x, a, b, own[i])
        else:
            x = to_level(x, a, b, (x - (1 - a) ** 0.5 * refined_noise(x, a)) / a**0.5, 0.0)
    return x


@pytest.mark.parametrize("name", [EULER, DPM, UNIPC, ANCESTRAL])
def test_with_fusion_errors_fall_with_the_order_of_renoising(name: str, monkeypatch: pytest.MonkeyPatch):
    """One Brownian path, drawn in few steps and in many: re-noising is of strong order 1, whatever the solver."""
    most, counts, rows = 1024, (16, 32, 64), 24
    x, fine, own = normal(rows, *SHAPE), normal(most, rows, *SHAPE, seed=1), normal(most, rows, *SHAPE, seed=2)
    config: dict[str, Any] = {"lower_order_final": False} if name in (DPM, UNIPC) else {}
    # Ancestral Euler has no such spacing: any first-order scheduler's even levels will do.
    even = scheduler_of(EULER, counts[0] + 1, **EVEN)
    ends = [plan(even)[0].alpha, plan(even)[-1].alpha]
    lambdas = torch.linspace(log_snr(ends[0]), log_snr(ends[1]), most + 1).double().tolist()
    levels = [1 / (1 + math.exp(-2 * lam)) for lam in lambdas]
    truth = many_steps(x, levels, fine, own if name == ANCESTRAL else None)
    errors = []
    for count in counts:
        scheduler = scheduler_of(name, count + 1, **(config if name == ANCESTRAL else {**EVEN, **config}))
        if name == ANCESTRAL:
            scheduler.sigmas = scheduler_of(EULER, count + 1, **EVEN).sigmas
            noise = Draws(brownian(count, own))
            monkeypatch.setattr(
                "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
                lambda shape, noise=noise, **rest: noise(torch.empty(shape, dtype=rest["dtype"])),
            )
        steps = plan(scheduler)
        found = draw(scheduler, x, brownian(count, fine), steps[:-1], num_iterations=1) / steps[-1].scale
        errors.append(float((found - truth).square().mean().sqrt()))
    assert slope(counts, errors) == pytest.approx(1, abs=0.25), errors
