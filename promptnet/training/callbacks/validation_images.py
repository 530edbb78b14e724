"""At every validation the same people, from the same noise: the run shows what it can draw by now."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image

from promptnet.training.callbacks.held_out_people import HeldOutPerson, held_out_people
from promptnet.training.callbacks.logs import check_after_averaging, log_image, log_scalars, log_text
from promptnet.training.callbacks.people_sheet import people_sheet
from promptnet.training.callbacks.sampling import (
    check_can_generate,
    draw,
    is_sharded,
    stage_pipeline,
    undisturbed,
)
from promptnet.training.run.saving import is_to_stop


@dataclass(frozen=True)
class GeneratedImage:
    """What a validation drew.

    Args:
        step: optimiser steps behind it.
        people: who.
        images: each person's, ask by ask.
        seconds: what it took.
    """

    step: int
    people: list[HeldOutPerson]
    images: list[list[Image.Image]]
    seconds: float


class ValidationImages(Callback):
    """Draws held-out people with the weights that are validated (the averaged ones, where there are any).

    Logs the image `val/people`, one row a person: reference | drawn | true answers where the data knows them; and the
    scalar `val/images_seconds`. Every rank draws the same, so all agree on the figures without asking each other.

    Args:
        num_people: of the validation data.
        num_prompts: images of each.
        num_steps: denoising steps.
        guidance: weight of the prediction under S* (plain guidance: no tuning, fusion or class term).
        seed: of people, prompts and noise.
        every_n_validations: draw at each n-th validation, and always at the end.
        prompts: sentences with S*; None lets the data choose.
    """

    def __init__(
        self,
        num_people: int = 4,
        num_prompts: int = 3,
        num_steps: int = 16,
        guidance: float = 3.0,
        seed: int = 0,
        every_n_validations: int = 1,
        prompts: list[str] | None = None,
    ) -> None:
        for name in ("num_people", "num_prompts", "num_steps", "every_n_validations"):
            if locals()[name] < 1:
                raise ValueError(f"{name}={locals()[name]} must be at least 1")
        self.num_people, self.num_prompts, self.num_steps, self.guidance = num_people, num_prompts, num_steps, guidance
        self.seed, self.every_n_validations, self.prompts = seed, every_n_validations, prompts
        self._num_validations, self._counted_at = 0, -1
        self.people: list[HeldOutPerson] = []
        self._last: GeneratedImage | None = None
        self._tried: GeneratedImage | None = None

    def state_dict(self) -> dict[str, Any]:
        """Validations so far, so that a resumed run draws at those that it would have drawn at."""
        return {"num_validations": self._num_validations, "counted_at": self._counted_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._num_validations, self._counted_at = state_dict["num_validations"], state_dict["counted_at"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the people.

        Raises:
            ValueError: there are none, or the order of callbacks would have the last images show other weights than
                those that are exported.
        """
        if stage == "fit":
            check_after_averaging(trainer, self)
            check_can_generate(pl_module)
            self.find_people(trainer)
            if is_sharded(trainer):
                rank_zero_warn("no validation images and no figures on them: FSDP holds the encoder in parts (use ddp)")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw one image in a step or two: what does not work is found now, not at the first validation."""
        self.tried(trainer, pl_module)

    def tried(self, trainer: Trainer, stage: Any) -> GeneratedImage | None:
        """One image, drawn once before the first step to see that all of it works; None where nothing is drawn."""
        if self._tried is None and not is_sharded(trainer):
            person = replace(self.find_people(trainer)[0], eval_prompts=self.people[0].eval_prompts[:1])
            self._tried = self._draw_people(trainer, stage, [person], min(2, self.num_steps))
            if self._tried is not None:
                people_sheet(self._tried.people, self._tried.images)
        return self._tried

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count validations; one that was broken off and is done again is the same."""
        if not trainer.sanity_checking and trainer.global_step != self._counted_at:
            self._num_validations += 1
            self._counted_at = trainer.global_step

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw before the first batch: whatever swaps weights for validation has done it by now, in any order."""
        generated = (
            self.generated(trainer, pl_module) if self.is_due(trainer) and batch_idx == dataloader_idx == 0 else None
        )
        if generated is not None:
            pl_module.log("val/images_seconds", generated.seconds, batch_size=1)
            self._show(trainer, generated)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the run ends with, unless the last validation did."""
        if self._last is None or self._last.step != trainer.global_step:
            generated = self.generated(trainer, pl_module)
            if generated is not None:
                log_scalars(trainer, {"val/images_seconds": generated.seconds})
                self._show(trainer, generated)

    def find_people(self, trainer: Trainer) -> list[HeldOutPerson]:
        """The people that are drawn, looked for once.

        Raises:
            ValueError: the data has none.
        """
        if not self.people:
            datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
            self.people = held_out_people(datamodule, self.num_people, self.num_prompts, self.seed, self.prompts)
        return self.people

    def is_due(self, trainer: Trainer) -> bool:
        """Whether this validation draws: one of a training, not the one that looks for errors before it."""
        is_real = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        return is_real and (self._num_validations - 1) % self.every_n_validations == 0

    def generated(self, trainer: Trainer, stage: Any) -> GeneratedImage | None:
        """This step's images, drawn at the first call; None under FSDP, and where the run was asked to stop."""
        if is_sharded(trainer):
            return None
        if self._last is None or self._last.step != trainer.global_step:
            self._last = self._draw(trainer, stage)
        return self._last

    def _draw(self, trainer: Trainer, stage: Any) -> GeneratedImage | None:
        return self._draw_people(trainer, stage, self.people, self.num_steps)

    def _draw_people(
        self, trainer: Trainer, stage: Any, people: list[HeldOutPerson], num_steps: int
    ) -> GeneratedImage | None:
        start_s, images = time.perf_counter(), []
        # No autocast: the pipeline hands every network what its own weights are in, also where these differ.
        with undisturbed([stage, *stage.frozen.values()]):
            pipe, positions = stage_pipeline(stage), getattr(stage, "word_positions", "natural")
            for person in people:
                generated = draw(pipe, person, num_steps, self.guidance, lambda: is_to_stop(trainer), positions)
                if generated is None:
                    return None
                images.append(generated)
        return GeneratedImage(trainer.global_step, people, images, time.perf_counter() - start_s)

    def _show(self, trainer: Trainer, generated: GeneratedImage) -> None:
        if trainer.is_global_zero:
            log_image(trainer, "val/people", people_sheet(generated.people, generated.images))
            prompts = [
                " | ".join(eval_prompt.prompt for eval_prompt in person.eval_prompts) for person in generated.people
            ]
            log_text(trainer, "val/people_prompts", prompts)
