"""Fusion Sampling's fusion stage: re-noise to the same level until S* and the rest of the prompt agree.

ProFusion, arXiv 2305.13579, section 3.2 and algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from promptnet.inference.sampling.guidance import Condition, References
from promptnet.inference.sampling.loop import Predict, Rule, Term
from promptnet.inference.sampling.phases import Phase, Role
from promptnet.inference.sampling.schedule import Step, to_noise


def renoised_share(alpha: float | Tensor, alpha_prev: float | Tensor, eta: float = 1.0) -> float | Tensor:
    """r = eta^2 (1 - a/b) / (1 - a), in [0, 1]: how much of the noise is exchanged.

    Args:
        alpha: a, alphabar at this step, in [0, 1).
        alpha_prev: b, alphabar at the next, less noisy step, in [a, 1], above 0.
        eta: in [0, 1]; 1 exchanges as much as an ancestral step would.

    Raises:
        ValueError: a value outside its range.
    """
    a, b = torch.as_tensor(alpha), torch.as_tensor(alpha_prev)
    if not 0 <= eta <= 1:
        raise ValueError(f"The fusion's eta must be in [0, 1], but is {eta}.")
    if not bool(((a >= 0) & (a < 1) & (b >= a) & (b <= 1) & (b > 0)).all()):
        raise ValueError(
            "Fusion needs 0 <= alpha <= alpha_prev <= 1 with alpha < 1 and alpha_prev > 0, but got "
            f"alpha={alpha}, alpha_prev={alpha_prev}. alpha is alphabar at this step, alpha_prev at the less noisy one."
        )
    return eta**2 * (1 - alpha / alpha_prev) / (1 - alpha)


def fuse(
    latents: Tensor,
    noise_pred: Tensor,
    noise: Tensor,
    *,
    alpha: float | Tensor,
    alpha_prev: float | Tensor,
    eta: float = 1.0,
) -> Tensor:
    """Exchange a share of the predicted noise for new noise, at the same noise level.

    x <- x - r sqrt(1-a) e + sqrt((1-a) r (2-r)) n,  r = eta^2 (1 - a/b) / (1 - a).

    In mean and variance this is a stochastic DDIM step to b with sigma^2 = r (1-b), followed by a draw of
    q_sigma(x_t | x_prev, x0-hat) back to a (arXiv 2305.13579, algorithm 1), with the two noises merged; unlike the form
    in sigma it is finite at a = 0 and at b = 1.

    Args:
        latents: (B, C, H, W), x_t in the variance-preserving scale.
        noise_pred: (B, C, H, W), the predicted noise e (not v).
        noise: (B, C, H, W), n, standard normal.
        alpha: a, alphabar at this step, in [0, 1); a number, or a tensor that broadcasts to the latents.
        alpha_prev: b, alphabar at the next, less noisy step, in [a, 1].
        eta: in [0, 1].

    Returns:
        (B, C, H, W), latents of the same noise level.

    Raises:
        ValueError: alpha, alpha_prev or eta outside its range.
    """
    r = renoised_share(alpha, alpha_prev, eta)
    return latents - r * (1 - alpha) ** 0.5 * noise_pred + ((1 - alpha) * r * (2 - r)) ** 0.5 * noise


@dataclass(frozen=True, eq=False)
class FusionSampling(Rule):
    """The fusion stage as a rule: before a step, `num_iterations` times predict and re-noise in place.

    In this stage e = e_u + w_f (e_s - e_u), with the prediction under S* averaged over the reference images by their
    weights; the S* conditions are scaled by gamma where they are made. This rule's terms take the place of the
    guidance's.

    Args:
        uncond: the empty or negative prompt, for the references' rows.
        references: the prompt that holds S*, its output state scaled by gamma.
        noise: (B, C, H, W) -> a standard normal of that shape, drawn for the rows that are fused.
        prediction: what the U-Net predicts, "epsilon" or "v_prediction".
        num_iterations: m.
        scale: w_f.
        eta: see `fuse`.
        until: the share of the steps, from the noisiest on, that are fused.
    """

    phase = Phase.FUSION

    uncond: Condition
    references: References
    noise: Callable[[Tensor], Tensor]
    prediction: str
    num_iterations: int = 1
    scale: float = 3.0
    eta: float = 1.0
    until: float = 1.0

    def terms(self, terms: list[Term], step: Step) -> list[Term]:
        if step.stage != "fusion":
            return terms
        weights = self.references.weights
        fractions = weights / weights.sum(dim=1, keepdim=True)  # (R, K)
        return [self.uncond.term(Role.UNCOND, 1 - self.scale), *self.references.terms(self.scale * fractions)]

    def renoised(self, step: Step) -> Tensor | None:
        acts = self.num_iterations and step.index < self.until * step.num_steps
        share = renoised_share(step.alpha, step.alpha_prev, self.eta) if acts else 0
        return self.references.rows if share else None

    def before(self, x: Tensor, step: Step, predict: Predict) -> Tensor:
        if self.renoised(step) is None:
            return x
        step = replace(step, stage="fusion")
        rows = self.references.rows
        for _ in range(self.num_iterations):
            output = predict(x, step)[rows]
            latents = x[rows] / step.scale  # variance-preserving
            noise_pred = to_noise(output, latents, step.alpha, self.prediction)
            fused = fuse(
                latents,
                noise_pred,
                self.noise(latents),
                alpha=step.alpha,
                alpha_prev=step.alpha_prev,
                eta=self.eta,
            )
            x = x.index_copy(0, rows, step.scale * fused)
        return x
