"""Which weight of an edit is for which call of a stock pipeline: that of the call's noise level.

Pipelines may begin after the noisiest level (`strength` below 1, `denoising_start`) or end before the last one
(`denoising_end`). Their scheduler knows all levels nevertheless, so a call is found among them by its timestep.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from promptnet.inference.editing.card import EditError
from promptnet.inference.editing.rule import weight_place

PLMS = "PNDMScheduler"  # makes two calls for the first of several steps
_NOISE = ("timesteps", "sigmas")

SD_PIPELINES = tuple(
    f"StableDiffusion{kind}Pipeline"
    for kind in (
        *("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint"),
        *("PAG", "PAGImg2Img", "PAGInpaint", "ControlNetPAG", "ControlNetPAGInpaint"),
    )
)
SDXL_PIPELINES = tuple(
    f"StableDiffusionXL{kind}Pipeline"
    for kind in (
        *("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint"),
        *("ControlNetUnion", "ControlNetUnionImg2Img", "ControlNetUnionInpaint"),
        *("PAG", "PAGImg2Img", "PAGInpaint", "ControlNetPAG", "ControlNetPAGImg2Img"),
    )
)


def check_pipeline(pipe: Any) -> None:
    """Refuse pipelines whose loop is not known to take a condition a step.

    A pipeline of another class is accepted if it inherits `__call__` from one of these.

    Raises:
        EditError: names those that are known.
    """
    name = type(pipe).__name__
    if name == "PromptNetPipeline":
        raise EditError("PromptNetPipeline takes edits itself: pipe(prompt, edits=card).")
    owner = next((cls.__name__ for cls in type(pipe).__mro__ if "__call__" in vars(cls)), name)
    if owner not in SD_PIPELINES + SDXL_PIPELINES:
        raise EditError(
            f"Edits do not work in {name}: it is not known how its loop takes a prompt. Use a pipeline of Stable "
            "Diffusion or SDXL for text-to-image, img2img or inpainting, with ControlNet, PAG or neither: "
            f"{', '.join(SD_PIPELINES + SDXL_PIPELINES)}."
        )


@dataclass(frozen=True, eq=False)
class Levels:
    """The noise levels of N weights, in the order of a scheduler's calls.

    Args:
        num_weights: N.
        shared: whether the first two calls of a whole drawing belong to one step, as PLMS's do.
        first: place of the call that a drawing is expected to begin with.
        noise: the scheduler's timesteps and, where it has them, sigmas.
    """

    num_weights: int
    shared: bool
    first: int
    noise: dict[str, Tensor]

    @classmethod
    def of(
        cls, pipe: Any, num_weights: int, strength: float | None = None, denoising_start: float | None = None
    ) -> "Levels":
        """The levels at which a pipeline will draw in as many steps.

        Args:
            pipe: a stock pipeline.
            num_weights: N.
            strength: of the call; None is the pipeline's own default.
            denoising_start: of the call.

        Raises:
            EditError: the pipeline takes no such argument, or nothing would be drawn.
        """
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(num_weights)
        num_calls = len(scheduler.timesteps)
        shared = num_calls > 1 and type(scheduler).__name__ == PLMS
        first = num_calls - _num_drawn(pipe, scheduler, num_weights, strength, denoising_start)
        if first >= num_calls:
            raise EditError(
                f"strength={strength} of {num_weights} steps, denoising_start={denoising_start}: no step would be "
                "drawn. Take more of the steps."
            )
        return cls(num_weights, shared, first, _noise_of(scheduler))

    def check(self, scheduler: Any) -> None:
        """Refuse a drawing at other levels.

        Raises:
            EditError: another number of steps, or other `timesteps=` or `sigmas=`.
        """
        num_calls = len(scheduler.timesteps)
        weight_place(0, num_calls, self.num_weights, shared=self.shared or _is_shared(scheduler))
        for name, found in _noise_of(scheduler).items():
            expected = self.noise[name]
            if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
                raise EditError(
                    f"The pipeline draws at other noise levels ({name}={_short(found)}) than the edit has weights for "
                    f"({_short(expected)}): leave timesteps= and sigmas= out."
                )

    def call(self, index: int, timestep: Any, num_generated: int) -> int:
        """The place among all calls of the drawing's call `index`.

        PLMS visits its second level twice; then the expected beginning decides, or else that the drawing goes on to the
        last level.

        Raises:
            EditError: the timestep is none of the scheduler's.
        """
        timesteps = self.noise["timesteps"]
        near = (timesteps - float(timestep)).abs() <= 1e-3
        begins = [place - index for place in near.nonzero().flatten().tolist() if place >= index]
        if not begins:
            raise EditError(f"The pipeline draws at timestep {float(timestep)}, for which the edit has no weight.")
        likely = [begin for begin in (self.first, len(timesteps) - num_generated) if begin in begins]
        return [*likely, begins[0]][0] + index

    def weight(self, call: int, begin: int) -> int:
        """The weight of the call at a place among all calls, in a drawing that begins at another place."""
        if self.shared and call == 1 == begin:
            return 1  # nothing came before it that it could share a step with
        return max(call - self.shared, 0)


def _is_shared(scheduler: Any) -> bool:
    return len(scheduler.timesteps) > 1 and type(scheduler).__name__ == PLMS


def _num_drawn(pipe: Any, scheduler: Any, num_steps: int, strength: float | None, denoising_start: float | None) -> int:
    """How many of the scheduler's calls a pipeline makes, by its own `get_timesteps`."""
    taken = inspect.signature(type(pipe).__call__).parameters
    for name, value in (("strength", strength), ("denoising_start", denoising_start)):
        if value is not None and name not in taken:
            raise EditError(f"{type(pipe).__name__} takes no {name}: leave {name}={value} out.")
    if "strength" not in taken:
        return len(scheduler.timesteps)
    share = taken["strength"].default if strength is None else strength
    options = {} if denoising_start is None else {"denoising_start": denoising_start}
    stand_in = SimpleNamespace(scheduler=scheduler)
    return len(type(pipe).get_timesteps(stand_in, num_steps, share, "cpu", **options)[0])


def _noise_of(scheduler: Any) -> dict[str, Tensor]:
    found = {name: getattr(scheduler, name, None) for name in _NOISE}
    return {name: torch.as_tensor(value).double().cpu() for name, value in found.items() if value is not None}


def _short(values: Tensor) -> str:
    shown: Sequence[str] = [f"{value:g}" for value in values[:3].tolist()]
    return f"{', '.join(shown)}{', ...' if len(values) > 3 else ''}"
