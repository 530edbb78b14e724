"""Guidance: which predictions are summed, and with what weights. The weights of each rule sum to one in every row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptnet.inference.sampling.loop import InputsOf, Rule, Term
from promptnet.inference.sampling.phases import Phase, Role
from promptnet.inference.sampling.schedule import Step


@dataclass(frozen=True, eq=False)
class Condition:
    """What a prediction is conditioned on, and the rows it is for (all, if None)."""

    inputs: InputsOf
    rows: Tensor | None = None

    def term(self, role: Role, weight: float | Tensor) -> Term:
        """A term under this condition, in plain mode."""
        return Term(role, weight, self.inputs, rows=self.rows)


@dataclass(frozen=True, eq=False)
class References:
    """The predictions that hold a subject, one condition for each reference image.

    Rows may have different numbers of reference images, so a condition may be for some of the rows only.

    Args:
        rows: (R,) the rows that hold a subject.
        conditions: K conditions, each for those of these rows that have a k-th reference image.
        weights: (R, K), zero where a row has no k-th image.
        maps: for each condition what its weights are multiplied with at each place, (rows of the condition, 1, h, w);
            None where that is 1. In each row, weights times maps have the weights' sum everywhere.
        num_regions: (R,), how many people have conditions of their own; None is 1.
    """

    rows: Tensor
    conditions: Sequence[Condition]
    weights: Tensor
    maps: Sequence[Tensor | None] = ()
    num_regions: Tensor | None = None

    @property
    def num_images(self) -> Tensor:
        """How many reference images each row has, of one person, (R, 1)."""
        count = (self.weights != 0).sum(dim=1, keepdim=True)
        return count if self.num_regions is None else count / self.num_regions[:, None]

    def _at_places(self, k: int, weights: Tensor) -> float | Tensor:
        """The weights (rows of condition k,) at each place, if they differ from place to place."""
        map_ = self.maps[k] if self.maps else None
        return _as_scalar(weights) if map_ is None else weights.to(map_)[:, None, None, None] * map_

    def terms(self, weights: Tensor) -> list[Term]:
        """Terms "subject.0", "subject.1", ... with the given (R, K) weights."""
        has_image = self.weights != 0
        return [
            condition.term(Role.subject(k), self._at_places(k, weights[has_image[:, k], k]))
            for k, condition in enumerate(self.conditions)
        ]


def _as_scalar(weights: Tensor) -> float | Tensor:
    """One number for equal weights."""
    same = not weights.requires_grad and bool((weights == weights[0]).all())
    return weights[0].item() if same else weights


@dataclass(frozen=True, eq=False)
class ClassifierFreeGuidance(Rule):
    """e = e_u + w (e_c - e_u), Ho and Salimans, arXiv 2207.12598.

    Args:
        uncond: the empty or negative prompt.
        prompt: the prompt.
        scale: w; 1 leaves e_u out.
        interval: the share of the steps, from the noisiest on, that are guided; w is 1 outside (arXiv 2404.07724).
    """

    phase = Phase.GUIDANCE

    uncond: Condition
    prompt: Condition
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def terms(self, terms: list[Term], step: Step) -> list[Term]:
        scale = self.scale if is_guided(step, self.interval) else 1.0
        return [*terms, self.uncond.term(Role.UNCOND, 1 - scale), self.prompt.term(Role.PROMPT, scale)]


def is_guided(step: Step, interval: tuple[float, float]) -> bool:
    """Whether a step lies in an interval of guidance, given as shares of the steps."""
    start, end = interval
    return start * step.num_steps <= step.index < end * step.num_steps


@dataclass(frozen=True, eq=False)
class Refinement(Rule):
    """ProFusion's refinement, arXiv 2305.13579 section 3.2: e = e_u + sum_k w_k (e_s,k - e_u) + w_c (e_c - e_u).

    Args:
        uncond: the empty or negative prompt, for the references' rows.
        references: the prompt that holds S*; w_k is `subject_scale` times the image's weight.
        reference_prompt: the same sentence with a class word in place of S*; not needed where `class_scale` is 0.
        subject_scale: w_s.
        class_scale: w_c; 0 leaves e_c out.
        each: whether w_k is that times the number of images, so that each pulls by w_s on average, as published.
        interval: the share of the steps, from the noisiest on, that are guided. Outside, the weights are divided by
            their sum, so that e_u drops out as in guidance with w = 1; weights that sum to nothing or less stay.
    """

    phase = Phase.GUIDANCE

    uncond: Condition
    references: References
    reference_prompt: Condition | None
    subject_scale: float
    class_scale: float
    each: bool = False
    interval: tuple[float, float] = (0.0, 1.0)

    def terms(self, terms: list[Term], step: Step) -> list[Term]:
        weights = self.references.weights
        pulls = self.subject_scale * weights  # (R, K)
        if self.each:
            pulls = pulls * self.references.num_images
        class_pull = torch.full_like(pulls[:, 0], self.class_scale if self.reference_prompt is not None else 0)
        rest = 1 - class_pull - pulls.sum(dim=1)  # (R,)
        if not is_guided(step, self.interval):
            divisor = torch.where(rest < 1, 1 - rest, 1.0)
            pulls, class_pull, rest = pulls / divisor[:, None], class_pull / divisor, torch.where(rest < 1, 0.0, rest)
        found = [*terms, self.uncond.term(Role.UNCOND, _as_scalar(rest)), *self.references.terms(pulls)]
        if self.reference_prompt is not None:
            found.append(self.reference_prompt.term(Role.CLASS, _as_scalar(class_pull)))
        return found


@dataclass(frozen=True, eq=False)
class GuidanceRescale(Rule):
    """Guidance without its growth in contrast, Lin et al., arXiv 2305.08891 equations 14 to 16.

    The sum is brought to the standard deviation of the conditional prediction, and the two are mixed. A row without
    one, guided with a scale of 0, stays as it is.

    Args:
        factor: phi in [0, 1]; 0 changes nothing.
    """

    phase = Phase.RESCALE

    factor: float

    def combine(self, outputs: Mapping[Role, Tensor], total: Tensor, step: Step) -> Tensor:
        positive = torch.zeros_like(total)
        for role in (Role.PROMPT, Role.subject(0)):  # for different rows
            positive = positive + outputs.get(role, torch.zeros_like(total))
        wanted, found = _row_std(positive), _row_std(total)
        ratio = torch.where(wanted > 0, wanted / found.clamp_min(torch.finfo(total.dtype).tiny), 1.0)
        return total * (self.factor * ratio + (1 - self.factor))


def _row_std(x: Tensor) -> Tensor:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)  # (B, 1, 1, 1)
