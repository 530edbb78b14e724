"""The steps of one drawing: which timesteps a scheduler executes, and between which noise levels each of them goes.

a is alphabar at this step, b at the next, less noisy one. `scale` leads from the variance-preserving latents that
networks see, x_t = sqrt(a) x_0 + sqrt(1-a) e, to those that the scheduler keeps: 1 for most, sqrt(1 + sigma^2) for
schedulers in sigma space, whose latents are x_0 + sigma e.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from promptnet.inference.sampling.scheduler_names import OTHER_SCHEDULERS, RENOISING_SCHEDULERS

_IN_SIGMA = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")  # their latents are x_0 + sigma e
_OF_SIGMA = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # levels by sigma, latents as networks see them


@dataclass(frozen=True, eq=False)
class Step:
    """One call of the scheduler, and what rules may want to know about it.

    Args:
        index: 0 for the noisiest.
        num_steps: how many there are; more than were asked for with schedulers that call twice.
        timestep: scalar tensor, as the scheduler and the networks want it.
        alpha: a, alphabar at this step, in [0, 1).
        alpha_prev: b, alphabar at the level this step leads to, in [a, 1].
        scale: scheduler's latents = scale * variance-preserving latents.
        stage: "denoise" for the evaluation that the scheduler's step is made of, "fusion" for one that comes before.
    """

    index: int
    num_steps: int
    timestep: Tensor
    alpha: float
    alpha_prev: float
    scale: float = 1.0
    stage: Literal["denoise", "fusion"] = "denoise"


def _known_name(scheduler: Any, names: tuple[str, ...]) -> str | None:
    """The first of the scheduler's classes, base classes included, that is in `names`."""
    return next((cls.__name__ for cls in type(scheduler).__mro__ if cls.__name__ in names), None)


def check_scheduler(scheduler: Any, *, renoising: bool = False) -> None:
    """Refuse, by name, what would draw wrong images.

    Args:
        scheduler: a diffusers scheduler.
        renoising: whether latents are to be re-noised between its steps, as Fusion Sampling does. Solvers that visit
            a level twice, or whose memory of earlier outputs is not known, would mix up noise levels.

    Raises:
        ValueError: the scheduler, or its prediction type, is not supported.
    """
    prediction_type(scheduler)
    name = type(scheduler).__name__
    for parameter in ("clip_sample", "thresholding"):
        if scheduler.config.get(parameter, False):
            raise ValueError(
                f"{name} has {parameter} on, which is for pixels and cuts latents: pipe.scheduler = "
                f"{name}.from_config(pipe.scheduler.config, {parameter}=False)."
            )
    if _known_name(scheduler, RENOISING_SCHEDULERS):
        if renoising and getattr(scheduler, "solver_p", None) is not None:
            raise ValueError(
                f"Fusion Sampling re-noises the latents between steps, but {name} has a solver_p, whose memory is its "
                "own: leave solver_p out, or take fusion_steps=0."
            )
        return
    if not _known_name(scheduler, OTHER_SCHEDULERS):
        raise ValueError(
            f"{name} is not supported. Use one of {', '.join(RENOISING_SCHEDULERS + OTHER_SCHEDULERS)}, for instance "
            "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)."
        )
    if renoising:
        raise ValueError(
            f"Fusion Sampling re-noises the latents between steps, which {name} does not allow. Use one of "
            f"{', '.join(RENOISING_SCHEDULERS)} (pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)), "
            "or fusion_steps=0."
        )


def plan(scheduler: Any) -> list[Step]:
    """The steps that a scheduler will execute, after its `set_timesteps`.

    For DDIM, b is the level that its step computes: alphabar at t - (trained steps // steps), which with trailing
    timesteps that do not divide evenly is not quite the next timestep. For Euler, DPM-Solver and UniPC,
    a = 1 / (1 + sigma^2), which with Karras's and other spacings lies between timesteps. For schedulers that nothing
    re-noises, b is the next step's a.

    Raises:
        ValueError: the scheduler is not supported.
    """
    check_scheduler(scheduler)
    if _known_name(scheduler, _IN_SIGMA):
        levels = _sigma_levels(scheduler, scaled=True)
    elif _known_name(scheduler, _OF_SIGMA):
        levels = _sigma_levels(scheduler, scaled=False)
    elif _known_name(scheduler, ("DDIMScheduler",)):
        levels = _ddim_levels(scheduler)
    else:
        levels = _next_step_levels(scheduler)
    timesteps = scheduler.timesteps
    return [Step(i, len(timesteps), timesteps[i], *level) for i, level in enumerate(levels)]


def from_timestep(steps: list[Step], start: int, scheduler: Any) -> list[Step]:
    """Leave out the steps above a timestep, as the published code of ProFusion (`st`); places and shares stay.

    Args:
        steps: of `plan`.
        start: the noisiest timestep that is executed.
        scheduler: whose steps they are.

    Raises:
        ValueError: no step is left, or the scheduler counts its steps or keeps latents of another scale.
    """
    kept = [step for step in steps if float(step.timestep) <= start]
    if len(kept) == len(steps):
        return steps
    if not kept:
        last = float(steps[-1].timestep)
        raise ValueError(f"start_timestep={start} leaves out every step: the last is at {last:g}, give at least that.")
    if _known_name(scheduler, ("DDIMScheduler",)) is None:
        raise ValueError(
            f"start_timestep={start} leaves out steps, which {type(scheduler).__name__} does not allow: take "
            "DDIMScheduler, or start_timestep=1000."
        )
    return kept


def _ddim_levels(scheduler: Any) -> list[tuple[float, float, float]]:
    alphas: list[float] = scheduler.alphas_cumprod.tolist()
    final = float(scheduler.final_alpha_cumprod)
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return [(alphas[t], alphas[t - stride] if t >= stride else final, 1.0) for t in scheduler.timesteps.tolist()]


def _sigma_levels(scheduler: Any, *, scaled: bool) -> list[tuple[float, float, float]]:
    sigmas: list[float] = scheduler.sigmas.tolist()
    alphas = [1 / (1 + sigma**2) for sigma in sigmas]
    scales = [(1 + sigma**2) ** 0.5 if scaled else 1.0 for sigma in sigmas]
    return list(zip(alphas[:-1], alphas[1:], scales[:-1], strict=True))


def _next_step_levels(scheduler: Any) -> list[tuple[float, float, float]]:
    """alphabar by interpolation, as some schedulers have timesteps between the trained ones."""
    trained: Tensor = scheduler.alphas_cumprod.double().cpu()
    times = scheduler.timesteps.double().cpu().clamp(0, len(trained) - 1)
    lower, upper = times.floor().long(), times.ceil().long()
    alphas = torch.lerp(trained[lower], trained[upper], times - lower).tolist()
    return [(a, b, 1.0) for a, b in zip(alphas, alphas[1:] + [1.0], strict=True)]


PREDICTION_TYPES = ("epsilon", "v_prediction")


def prediction_type(scheduler: Any) -> str:
    """The scheduler's prediction type, if this package knows it.

    Raises:
        ValueError: it is something else than epsilon or v, such as `sample` or a flow.
    """
    found = scheduler.config.get("prediction_type", "epsilon")
    flow = scheduler.config.get("use_flow_sigmas", False) or scheduler.config.get("use_flow_sigma", False)
    if found not in PREDICTION_TYPES or flow:
        what = "flow sigmas" if flow else f"prediction_type={found!r}"
        raise ValueError(
            f"{type(scheduler).__name__} is set to {what}, but only {' and '.join(PREDICTION_TYPES)} are supported. "
            "Use a scheduler made for the base model with one of these."
        )
    return found


def to_noise(output: Tensor, latents: Tensor, alpha: float, kind: str) -> Tensor:
    """The noise e that a model output stands for; v-prediction is Salimans and Ho, arXiv 2202.00512, appendix D.

    e = output, or e = sqrt(a) v + sqrt(1-a) x_t.

    Args:
        output: (B, C, H, W), the model's output, or a sum of outputs whose weights sum to one.
        latents: (B, C, H, W), x_t in the variance-preserving scale.
        alpha: a, alphabar at t, in [0, 1].
        kind: "epsilon" or "v_prediction".
    """
    if kind == "epsilon":
        return output
    return alpha**0.5 * output + (1 - alpha) ** 0.5 * latents
