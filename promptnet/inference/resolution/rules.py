"""The rules: terms in the adapted mode, and noise-damped guidance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from promptnet.inference.resolution.mode import Adaptation, check_settings
from promptnet.inference.resolution.settings import ResolutionSettings
from promptnet.inference.sampling.loop import Mode, Rule, Term
from promptnet.inference.sampling.phases import Phase, Role
from promptnet.inference.sampling.schedule import Step


@dataclass(frozen=True, eq=False)
class AdaptedResolution(Rule):
    """Terms that have no mode of their own are evaluated in this one.

    Args:
        mode: how the network's layers behave at the size that is drawn.
    """

    phase = Phase.RESOLUTION

    mode: Mode

    def terms(self, terms: list[Term], step: Step) -> list[Term]:
        return [term if term.mode is not None else replace(term, mode=self.mode) for term in terms]


@dataclass(frozen=True, eq=False)
class NoiseDampedGuidance(Rule):
    """Guidance that keeps the plain model's power to remove noise, arXiv 2310.07702 section 3.4.

        e = e_u^damped + sum_k w_k (e_k - e_u)

    The unconditional prediction in its damped mode stands in for the plain one; differences stay those of the other
    modes. So a step has one evaluation more than without it: three with one condition, four inside ProFusion's
    refinement. Where e_u has no weight (guidance scale 1), nothing is damped.

    Args:
        mode: of the damped pass, whose layer map is smaller.
        adaptation: for how long.
    """

    phase = Phase.DAMPING

    mode: Mode
    adaptation: Adaptation

    def terms(self, terms: list[Term], step: Step) -> list[Term]:
        if not self.adaptation.is_damped(step.index / step.num_steps):
            return terms
        found: list[Term] = []
        for term in terms:
            if term.role != Role.UNCOND:
                found.append(term)
                continue
            # sum_k w_k (e_k - e_u) has e_u with w_u - 1, as all weights sum to one
            damped = _has_guidance(term.weight)
            found.append(replace(term, weight=term.weight - damped))
            found.append(replace(term, role=Role.DAMPED, weight=damped, mode=self.mode))
        return found


def _has_guidance(weight: float | Tensor) -> float | Tensor:
    """1, or 0 where e_u has no weight: there nothing is guided, and e_k alone is evaluated."""
    return (weight != 0).to(weight) if isinstance(weight, Tensor) else float(weight != 0)


def resolution_rules(
    unet: nn.Module,
    settings: ResolutionSettings,
    *,
    trained_size_px: tuple[float, float],
    size_px: tuple[int, int],
) -> Sequence[Rule]:
    """What the loop needs to draw at a size; nothing where the settings change nothing.

    Raises:
        ValueError: the settings do not fit the network.
    """
    adaptation = check_settings(unet, settings, trained_size_px, size_px)
    if settings.is_plain:
        return []
    adapted, damped = adaptation.modes()
    rules: list[Rule] = [AdaptedResolution(adapted)]
    return [*rules, NoiseDampedGuidance(damped, adaptation)] if settings.damped_steps else rules
