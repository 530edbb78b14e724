"""What of a scheduler decides at which noise levels the weights of an edit act."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

# Of those, a card keeps the ones that its scheduler's class knows.
SETTINGS = (
    "num_train_timesteps",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "skip_prk_steps",
    "algorithm_type",
    "solver_order",
    "solver_type",
    "lower_order_final",
    "euler_at_final",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "final_sigmas_type",
    "interpolation_type",
    "timestep_type",
    "thresholding",
    "clip_sample",
)
ALPHAS = "alphas"

Setting = str | bool | int | float | None | list[float]


def schedule_settings(scheduler: Any) -> dict[str, Setting]:
    """A scheduler's settings of `SETTINGS`, and as "alphas" alphabar of the first, the middle and the last timestep.

    These three stand for betas, however these were given, and for their rescaling to zero terminal signal. An offset of
    the timesteps counts only where they are leading; diffusers' own pipelines change it without a word.
    """
    known = inspect.signature(type(scheduler).__init__).parameters
    found: dict[str, Setting] = {
        name: scheduler.config[name] for name in SETTINGS if name in known and name in scheduler.config
    }
    if found.get("timestep_spacing", "leading") != "leading":
        found.pop("steps_offset", None)
    alphas = scheduler.alphas_cumprod
    return {**found, ALPHAS: [float(alphas[place]) for place in (0, len(alphas) // 2, -1)]}


def differing_settings(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The settings that both have, and have otherwise."""
    return [name for name in expected if name in found and not _same(expected[name], found[name])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        # Rounding differs between machines and versions.
        return len(one) == len(other) and all(
            math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in zip(one, other, strict=True)
        )
    return one == other


def is_schedule(settings: Any) -> bool:
    """Whether this can be what `schedule_settings` gives."""
    if not isinstance(settings, Mapping):
        return False
    plain = all(
        isinstance(value, (str, bool, int, float, type(None))) for name, value in settings.items() if name != ALPHAS
    )
    alphas = settings.get(ALPHAS, [])
    return plain and isinstance(alphas, list) and all(isinstance(alpha, float) for alpha in alphas)
