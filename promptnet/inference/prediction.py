"""What a U-Net predicts, turned into the noise e in x_t = sqrt(a) x_0 + sqrt(1-a) e."""

from typing import Any

from torch import Tensor

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
