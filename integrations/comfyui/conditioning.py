"""ComfyUI's CONDITIONING: a list of [states (1, T, D), {"pooled_output": (1, P), "start_percent": ..., ...}]."""

from typing import Any

from torch import Tensor

Conditioning = list[Any]

GAP = 1e-5
"""Between two ranges: both ends belong to a range, and where two met both would act."""


def during(entries: Conditioning, first: int, last: int, num_steps: int) -> Conditioning:
    """The same for the steps from `first` to before `last`, of `num_steps` that share the trained timesteps evenly.

    A percent is a timestep, (1 - percent) 999, so step i of N lies between i / N and (i + 1) / N with ComfyUI's
    schedulers normal, simple and ddim_uniform.
    """
    start, end = first / num_steps, last / num_steps
    found = []
    for states, about in entries:
        # A range of its own is kept where both hold.
        begin = max(start, about.get("start_percent", 0.0))
        finish = min(end - GAP if last < num_steps else 1.0, about.get("end_percent", 1.0))
        if begin < finish:
            found.append([states, {**about, "start_percent": begin, "end_percent": finish}])
    return found


def shifted(positive: Conditioning, neutral: Conditioning, styled: Conditioning, share: float) -> Conditioning:
    """c + share (styled - neutral), in the states and in SDXL's pooled ones.

    Raises:
        ValueError: neutral or styled has several entries, or shapes differ.
    """
    (one, about_one), (other, about_other) = single("neutral", neutral), single("styled", styled)
    return [
        [
            _moved("states", states, one, other, share),
            {**about, **_moved_pooled(about, about_one, about_other, share)},
        ]
        for states, about in positive
    ]


def single(name: str, entries: Conditioning) -> Any:
    """The one entry of a conditioning.

    Raises:
        ValueError: there are several, or none.
    """
    if len(entries) != 1:
        raise ValueError(f"{name} has {len(entries)} entries, and may have 1: link a CLIP Text Encode to it.")
    return entries[0]


def _moved(name: str, states: Tensor, neutral: Tensor, styled: Tensor, share: float) -> Tensor:
    shapes = [tuple(each.shape[1:]) for each in (states, neutral, styled)]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"The {name} of positive, neutral and styled have the shapes {shapes}: encode all three with one CLIP, and "
            "keep the prompts below 76 tokens."
        )
    return states + share * (styled - neutral).to(states)


def _moved_pooled(about: Any, neutral: Any, styled: Any, share: float) -> dict[str, Tensor]:
    states, one, other = (each.get("pooled_output") for each in (about, neutral, styled))
    if states is None or one is None or other is None:
        return {}
    return {"pooled_output": _moved("pooled states", states, one, other, share)}
