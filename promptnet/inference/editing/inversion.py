"""Real images into the loop and back: inversion with a correction at each step (Wu et al., arXiv 2212.08698, 3.3).

DDIM inversion (Song et al., arXiv 2010.02502) leads an image's latents up to noise, level by level. Drawing from that
noise comes back only roughly; the difference at each step, w_k, is kept as a correction. Drawing again with the same
corrections gives the image's latents back to rounding, and with an edit in it, the edited image.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from promptnet.inference.sampling.loop import Rule, predict_output, sample
from promptnet.inference.sampling.phases import Phase
from promptnet.inference.sampling.schedule import Step, check_scheduler, plan, prediction_type
from promptnet.inference.sampling.scheduler_names import INVERTIBLE_SCHEDULERS

PUBLISHED_END = 0.66
"""The published share of the steps that are corrected: 33 of 50, and 34 of PLMS's 51 calls."""
_RESCALING = "rescale_betas_zero_snr"
_NO_SIGNAL = 1e-4  # some schedulers keep a little of it, to divide by


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A scheduler by name, with another's noise levels; PNDM without its Runge-Kutta start, as published.

    Raises:
        ValueError: the name is none of those that edits can be learned with.
    """
    scheduler_class(name)
    return converted_scheduler(name, config)


def converted_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Return a scheduler of diffusers by name, with another's noise levels, that leaves latents unclipped.

    Args:
        name: of the class.
        config: of the other scheduler.

    Raises:
        ValueError: the scheduler is not supported.
    """
    kind: Any = getattr(diffusers, name)
    known, options = inspect.signature(kind.__init__).parameters, {}
    if "clip_sample" in known and "clip_sample" not in config:
        options["clip_sample"] = False
    if name == "PNDMScheduler":
        options["skip_prk_steps"] = True
    if config.get(_RESCALING) and _RESCALING not in known:
        options |= _rescaled(config)
        config = {key: value for key, value in config.items() if key != _RESCALING}
    scheduler = kind.from_config(config, **options)
    check_scheduler(scheduler)
    return scheduler


def scheduler_class(name: str) -> Any:
    """A scheduler's class by its name.

    Raises:
        ValueError: the name is none of those that edits can be learned with.
    """
    if name not in INVERTIBLE_SCHEDULERS:
        raise ValueError(f"scheduler={name!r} must be one of {', '.join(INVERTIBLE_SCHEDULERS)}.")
    return getattr(diffusers, name)


def _rescaled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Noise levels of zero terminal signal (Lin et al., arXiv 2305.08891) for PNDM, which does not know of them.

    The levels are handed on as betas. The last one, without signal, cannot be stepped from: PLMS averages predictions
    of the noise over steps, from which x_0 follows by a division by sqrt(a). Leading timesteps leave it out; their
    offset is the one that diffusers' own pipelines insist on.
    """
    kind: Any = diffusers.DDIMScheduler
    betas = kind.from_config(config).betas
    return {"trained_betas": betas.tolist(), "timestep_spacing": "leading", "steps_offset": 1}


@dataclass(frozen=True, eq=False)
class Inversion:
    """An image as noise and corrections.

    Args:
        start: (B, C, h, w), where the drawing starts, in the scheduler's scale.
        corrections: (K, B, C, h, w), w_k, one for each call of the scheduler.
        levels: (K, B, C, h, w), the image's own latents after each call, the image itself last.
    """

    start: Tensor
    corrections: Tensor
    levels: Tensor

    def rule(self, *, until: float = 1.0) -> "Corrections":
        """The rule that replays the image.

        Args:
            until: the share of the steps, from the noisiest on, that are corrected. Less than 1 loosens the grip on
                the image (`PUBLISHED_END`), so that weights of 1 do not give it back.

        Raises:
            ValueError: `until` is not between 0 and 1.
        """
        check_end(until)
        return Corrections(self.corrections, until)

    def of_rows(self, rows: Tensor) -> "Inversion":
        """Some of the images, by their places (R,)."""
        return Inversion(self.start[rows], self.corrections[:, rows], self.levels[:, rows])


def check_end(until: float) -> None:
    """Refuse a share of the steps that is none.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 <= until <= 1:
        raise ValueError(f"until={until} must be between 0 and 1: the share of the steps that hold on to the image.")


def joined(parts: Sequence[Inversion]) -> Inversion:
    """Images that were inverted one after the other, as one batch."""
    return Inversion(
        torch.cat([part.start for part in parts]),
        torch.cat([part.corrections for part in parts], dim=1),
        torch.cat([part.levels for part in parts], dim=1),
    )


@dataclass(frozen=True, eq=False)
class Corrections(Rule):
    """x <- x + w_k after step k; see `Inversion.rule`, which makes it."""

    phase = Phase.INVERSION

    corrections: Tensor
    until: float = 1.0

    def after(self, x: Tensor, step: Step) -> Tensor:
        if len(self.corrections) != step.num_steps:
            raise ValueError(
                f"The image was inverted in {len(self.corrections)} scheduler calls, but the drawing has "
                f"{step.num_steps}: invert it again, with as many steps."
            )
        if step.index >= round(self.until * step.num_steps):
            return x
        return x + self.corrections[step.index].to(x)


@dataclass(frozen=True, eq=False)
class KeptOutside(Rule):
    """After each step, the inverted image's own latents outside a mask.

    Args:
        levels: of the inversion.
        mask: (h, w) or broadcastable to (B, C, h, w), 1 where the edit may act, 0 where the image stays.
    """

    phase = Phase.MASK

    levels: Tensor
    mask: Tensor

    def after(self, x: Tensor, step: Step) -> Tensor:
        mask = self.mask.to(x)
        return mask * x + (1 - mask) * self.levels[step.index].to(x)


@dataclass(frozen=True, eq=False)
class _Recorder(Rule):
    """Puts the latents on the inverted trajectory after each step, and notes by how much."""

    phase = Phase.INVERSION

    targets: Sequence[Tensor]
    noted: list[Tensor] = field(default_factory=list)

    def after(self, x: Tensor, step: Step) -> Tensor:
        correction = self.targets[step.index] - x
        self.noted.append(correction)
        return x + correction  # what the replay computes, rounding and all


@torch.no_grad()
def invert(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    rules: Sequence[Rule],
    *,
    num_steps: int,
    inversion_rules: Sequence[Rule] | None = None,
    num_iterations: int = 1,
    as_published: bool = False,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Inversion:
    """Find start and corrections for an image.

    Args:
        unet: a diffusers U-Net.
        scheduler: DDIM (without noise of its own), PNDM, DPM-Solver++ or Euler; its timesteps are set here.
        latents: (B, C, h, w), scaled VAE latents of the image.
        rules: those of the unedited drawing.
        num_steps: of the drawing.
        inversion_rules: those of the way up to noise; default `rules`. Plain conditioning, without guidance, goes up
            more faithfully, but is not what was published.
        num_iterations: of the fixed point at each step up; 1 is DDIM inversion. Not used as published.
        as_published: start and corrections as the published code makes them. It takes the image for latents of the
            least noisy step's level, and goes up from there in one update less than there are steps, each evaluated at
            the level that it leaves (`published_start`). Each correction leads to the image with noise of its own,
            y_k = sqrt(a_k) z + sqrt(1 - a_k) n_k, and one noise level late: back to the level that its step came from.
            PLMS's first two calls belong to one step, and share the second's. Drawn again with weights of 1, the
            image does not come back.
        noise: (N, B, C, h, w), standard normal, one for each step's level, the noisiest first: what the published
            corrections are made with. Default: drawn.
        generator: where that noise is drawn from.

    Raises:
        ValueError: the scheduler is another, or draws noise of its own; or there is noise that nothing would use, or
            of another shape.
    """
    check_invertible(scheduler)
    if noise is not None and not as_published:
        raise ValueError("noise is for as_published=True: otherwise corrections lead to the image's own way up.")
    scheduler.set_timesteps(num_steps, device=latents.device)
    steps = plan(scheduler)
    upward = rules if inversion_rules is None else inversion_rules
    if as_published:
        return _invert_as_published(unet, scheduler, latents, steps, rules, upward, noise, generator)
    levels = ddim_invert(unet, scheduler, latents, steps, upward, num_iterations)
    recorder = _Recorder(levels[1:])
    sample(unet, scheduler, levels[0], [*rules, recorder], steps=steps)
    return Inversion(levels[0], torch.stack(recorder.noted), torch.stack(levels[1:]))


def _invert_as_published(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    steps: Sequence[Step],
    rules: Sequence[Rule],
    upward: Sequence[Rule],
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> Inversion:
    """The `as_published` part of `invert`."""
    start = published_start(unet, scheduler, latents, steps, upward)
    levels = published_levels(latents, steps, noise, generator)  # before each call
    recorder = _Recorder(levels)
    sample(unet, scheduler, start, [*rules, recorder], steps=steps)
    stored, again = recorder.noted, [*map(_repeats, steps), False]
    stored = [stored[k + 1] if again[k + 1] else stored[k] for k in range(len(stored))]
    after = [latents]  # from the last call to the first
    for k in range(len(steps) - 1, 0, -1):
        after.append(after[-1] if again[k] else levels[k])
    return Inversion(start, torch.stack(stored), torch.stack(after[::-1]))


def _repeats(step: Step) -> bool:
    """Whether this is PLMS's second call, from where the first one started."""
    return step.alpha == step.alpha_prev


@torch.no_grad()
def published_start(unet: Any, scheduler: Any, latents: Tensor, steps: Sequence[Step], rules: Sequence[Rule]) -> Tensor:
    """Where the published code starts an image's drawing, (B, C, h, w) in the scheduler's scale.

    The image's latents are taken for those of the least noisy step's level; each update up to the next level is
    evaluated at the level that it leaves.
    """
    distinct = [step for step in steps if not _repeats(step)]
    x, kind = latents, prediction_type(scheduler)
    for noisier, step in zip(distinct[-2::-1], distinct[:0:-1], strict=True):
        gain, factor = _ddim_step(replace(step, alpha_prev=noisier.alpha), kind)
        x = gain * x + factor * predict_output(unet, x, step, rules)
    return x * steps[0].scale


def published_levels(
    latents: Tensor, steps: Sequence[Step], noise: Tensor | None = None, generator: torch.Generator | None = None
) -> list[Tensor]:
    """The image with noise of its own at the level of each call, y_k = sqrt(a_k) z + sqrt(1 - a_k) n_k.

    Args:
        latents: z, (B, C, h, w).
        steps: one for each call.
        noise: (N, B, C, h, w), for each level, the noisiest first. Default: drawn.
        generator: where it is drawn from.

    Returns:
        For each call (B, C, h, w), in the scheduler's scale; PLMS's second call has the first one's.

    Raises:
        ValueError: the noise has another shape.
    """
    places = [place - 1 for place in accumulate(int(not _repeats(step)) for step in steps)]
    shape = (places[-1] + 1, *latents.shape)
    if noise is None:
        noise = randn_tensor(shape, generator=generator, device=latents.device, dtype=latents.dtype)
    if tuple(noise.shape) != shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}, but must be {shape}: one for each level, the noisiest first."
        )
    noise = noise.to(latents)
    origins = [steps[k - _repeats(step)] for k, step in enumerate(steps)]
    return [
        step.scale * (step.alpha**0.5 * latents + (1 - step.alpha) ** 0.5 * noise[place])
        for step, place in zip(origins, places, strict=True)
    ]


def check_invertible(scheduler: Any) -> None:
    """Refuse schedulers that cannot be replayed.

    Raises:
        ValueError: names those that can, or the setting that the scheduler ignores.
    """
    name = type(scheduler).__name__
    noisy = str(scheduler.config.get("algorithm_type", "")).startswith("sde")
    if name not in INVERTIBLE_SCHEDULERS or noisy:
        what = f"{name} with algorithm_type={scheduler.config['algorithm_type']!r}" if noisy else name
        raise ValueError(
            f"{what} cannot replay an image: use one of {', '.join(INVERTIBLE_SCHEDULERS)}, for instance "
            "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)."
        )
    if scheduler.config.get(_RESCALING) and float(scheduler.alphas_cumprod[-1]) > _NO_SIGNAL:
        raise ValueError(
            f"{name} ignores {_RESCALING}, so its noise levels are not those that the base model was trained with: use "
            f"pipe.scheduler = promptnet.inference.editing.inversion.make_scheduler({name!r}, pipe.scheduler.config)."
        )


def ddim_invert(
    unet: Any, scheduler: Any, latents: Tensor, steps: Sequence[Step], rules: Sequence[Rule], num_iterations: int = 1
) -> list[Tensor]:
    """DDIM inversion: the latents at the level before each step and after the last, in the scheduler's scale.

    A step leads from level a to b by y_b = A y_a + B output(y_a). Backwards y_a is a fixed point, started at y_b.

    Returns:
        len(steps) + 1 tensors (B, C, h, w), the noisiest first, the image's latents last.
    """
    kind = prediction_type(scheduler)
    x, found = latents, [latents]  # x in the variance-preserving scale
    for step in reversed(steps):
        if step.alpha != step.alpha_prev:  # PLMS calls twice at one level
            gain, factor = _ddim_step(step, kind)
            below = x
            for _ in range(num_iterations):
                output = predict_output(unet, x, step, rules)
                x = (below - factor * output) / gain
        found.append(x * step.scale)
    return found[::-1]


def _ddim_step(step: Step, kind: str) -> tuple[float, float]:
    """A and B of y_b = A y_a + B output, arXiv 2010.02502 equation 12 with sigma = 0, for epsilon and v."""
    a, b = step.alpha, step.alpha_prev
    if kind == "epsilon":
        return (b / a) ** 0.5, (1 - b) ** 0.5 - (b * (1 - a) / a) ** 0.5
    return (a * b) ** 0.5 + ((1 - a) * (1 - b)) ** 0.5, (a * (1 - b)) ** 0.5 - (b * (1 - a)) ** 0.5
