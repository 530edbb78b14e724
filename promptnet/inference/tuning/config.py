"""How one person is tuned unless a call says otherwise, and what is said on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from promptnet.inference.values import real, whole
from promptnet.models.placeholders import check_letters, find_placeholders

# What can train: PromptNet's map into the space of words, and the U-Net's cross-attention keys and values.
TRAINABLE = ("words", "kv")


class TuningError(ValueError):
    """Tuning that went wrong. The message says where, and what to change."""


@dataclass(frozen=True)
class LoopConfig:
    """What every method of tuning on one person has.

    Args:
        steps: optimiser steps at most.
        learning_rate: of the optimiser; the method says of what.
        batch_size: noisy views in one step.
        num_views: augmented views that are encoded for each image, once.
        scales: smallest and largest size of a view's image, in canvas sides.
        flip: whether half of the views are mirrored. Off: faces are not symmetric, and a parting is part of one.
        prompts: what the person is called in, in turn by chance; each holds S*.
        validate_every: steps between two looks at the held-out noise levels.
        patience: looks without improvement after which tuning stops.
    """

    steps: int = 50
    learning_rate: float = 5e-3
    batch_size: int = 4
    num_views: int = 12
    scales: tuple[float, float] = (0.75, 1.15)
    flip: bool = False
    prompts: tuple[str, ...] = ("a photo of S*",)
    validate_every: int = 5
    patience: int = 4

    def __post_init__(self) -> None:
        for name in ("scales", "prompts"):  # JSON has lists only, and one prompt may be given as it is
            object.__setattr__(self, name, _several(name, getattr(self, name)))
        least = {"steps": 0, "batch_size": 1, "num_views": 1, "validate_every": 1, "patience": 1}
        for name, smallest in least.items():
            object.__setattr__(self, name, whole(name, getattr(self, name), smallest))
        object.__setattr__(self, "learning_rate", real("learning_rate", self.learning_rate))
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be a number above 0.")
        if len(self.scales) != 2 or not 0 < real("scales", self.scales[0]) <= real("scales", self.scales[1]):
            raise ValueError(f"scales={self.scales} must be two numbers above 0, the smaller one first.")
        if not self.prompts:
            raise ValueError("prompts must hold at least one prompt, such as 'a photo of S*'.")
        for prompt in self.prompts:
            if not isinstance(prompt, str) or set(find_placeholders(prompt)) != {"S*"}:
                raise ValueError(f"The tuning prompt {prompt!r} must mention S*, and no other placeholder.")
            check_letters(prompt)

    def replaced(self, given: Mapping[str, Any]) -> Self:
        """These parameters, with those given that are not None.

        Raises:
            ValueError: a parameter does not exist, or its value is out of range.
        """
        known = {parameter.name for parameter in fields(self)}
        if set(given) - known:
            raise ValueError(
                f"Unknown tuning parameter {', '.join(sorted(set(given) - known))}: "
                f"there are {', '.join(sorted(known))}."
            )
        return replace(self, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class TuningConfig(LoopConfig):
    """The parameters of per-user tuning. A checkpoint keeps those measured for it in its pipeline's config, `tuning`.

    `steps` 0 keeps PromptNet's words as they are. `learning_rate` is Adam's, as a share of the layers' own outputs; it
    falls linearly to 0 over the steps. The other parameters are those of `LoopConfig`, and:

    Args:
        rank: of the LoRA layers, at most what a layer can have.
        train: which of `TRAINABLE` get loras.
        moved_references: how many moved copies of each image PromptNet reads in turn with the image itself, placed and
            scaled as views are. 0 as ProFusion: the encoder always reads the image as it is.
    """

    rank: int = 4
    train: tuple[str, ...] = TRAINABLE
    moved_references: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "train", _several("train", self.train))
        object.__setattr__(self, "rank", whole("rank", self.rank, 1))
        object.__setattr__(self, "moved_references", whole("moved_references", self.moved_references, 0))
        if not self.train or set(self.train) - set(TRAINABLE):
            raise ValueError(f"train={self.train} must name one or more of {', '.join(TRAINABLE)}.")


def _several(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}={value!r} must be a list.")
    return tuple(value)


@dataclass(frozen=True)
class TuningProgress:
    """Where tuning is, for callbacks.

    Args:
        step: steps done.
        num_steps: steps at most.
        loss: of this step's batch.
        validation_loss: at the held-out noise levels, at the last look.
        best_validation_loss: the lowest so far, which is what will be kept.
        first_validation_loss: before the first step.
    """

    step: int
    num_steps: int
    loss: float
    validation_loss: float
    best_validation_loss: float
    first_validation_loss: float = float("nan")
