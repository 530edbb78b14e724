"""Gradients: how large, how often clipped, and, where they are not finite, whose."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from promptnet.training.callbacks.logs import log_scalars


class TrainingDiverged(RuntimeError):
    """Gradients stayed non-finite: going on would waste the machine."""


class GradientWatch(Callback):
    """Logs the gradients' norm and how often they are clipped; counts and names what is not finite, and stops in time.

    Scalars: `gradients/norm` before clipping; `gradients/clipped_share` of the last `window` steps;
    `gradients/clipped_steps` and `gradients/nonfinite_steps` since the run began, interruptions included.

    A step whose gradients are not finite is not taken (its gradients are dropped, weights and Adam's averages stay as
    they are) and says so on the console. With fp16 the loss scaler does that itself, and a few such steps at the
    beginning are how it finds its scale.

    DeepSpeed keeps its gradients to itself. There the norm is that of its engine, read when the step is done; bad steps
    are counted, but DeepSpeed says neither whose gradients they were nor asks before it takes such a step or leaves it.
    Where its engine computes no norm, nothing is counted, and that is said.

    Args:
        patience: this many such steps in a row end the run with `TrainingDiverged`.
        window: steps over which the share is taken.
    """

    def __init__(self, patience: int = 10, window: int = 100) -> None:
        if patience < 1 or window < 1:
            raise ValueError(f"patience={patience} and window={window} must be at least 1")
        self.patience, self.num_nonfinite, self.num_in_a_row, self.num_clipped = patience, 0, 0, 0
        self._clipped: deque[bool] = deque(maxlen=window)
        self._seen_none = False
        self._step = self._num_skipped = 0  # what DeepSpeed's engine had done when it was last looked at

    def state_dict(self) -> dict[str, Any]:
        """The counts, for the checkpoint."""
        counts = {"num_nonfinite": self.num_nonfinite, "num_in_a_row": self.num_in_a_row}
        return {**counts, "num_clipped": self.num_clipped, "clipped": list(self._clipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The counts, from the checkpoint."""
        self.num_nonfinite, self.num_in_a_row = state_dict["num_nonfinite"], state_dict["num_in_a_row"]
        self.num_clipped = state_dict.get("num_clipped", 0)  # earlier checkpoints did not count them
        self._clipped.extend(state_dict["clipped"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See where DeepSpeed's engine stands."""
        self._step = trainer.global_step
        self._num_skipped = getattr(_engine(trainer), "skipped_steps", 0)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at the gradients after accumulation and unscaling, before clipping."""
        norm = gradient_norm(pl_module.named_parameters())
        if norm is None:
            if _engine(trainer) is None:
                self._warn_of_none(trainer)
            return
        norm = _over_shards(trainer, norm)
        if bool(norm.isfinite()):
            self.num_in_a_row = 0
            self._count(_is_clipped(trainer, pl_module, float(norm)))
        else:
            where = _blame(pl_module)
            _drop(trainer, pl_module)
            self._report(trainer, trainer.global_step + 1, where, "the step is not taken")
        self._log(pl_module, float(norm))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask DeepSpeed's engine, which alone has seen the gradients, what they were."""
        engine = _engine(trainer)
        if engine is None or trainer.global_step == self._step:
            return
        self._step, skipped = trainer.global_step, engine.skipped_steps - self._num_skipped
        self._num_skipped = engine.skipped_steps
        found = engine.get_global_grad_norm()
        if found is None:
            self._warn_of_none(trainer)
            return
        norm = float(found)
        if skipped or not math.isfinite(norm) or norm < 0:  # some versions say -1 where it is not finite
            taken = "DeepSpeed has left the step out" if skipped else "DeepSpeed has taken the step"
            self._report(trainer, trainer.global_step, "DeepSpeed does not say whose", taken)
            norm = math.inf
        else:
            self.num_in_a_row = 0
            self._count(bool(trainer.gradient_clip_val) and norm > float(trainer.gradient_clip_val or 0))
        self._log(pl_module, norm)

    def _count(self, clipped: bool) -> None:
        self._clipped.append(clipped)
        self.num_clipped += clipped

    def _log(self, stage: LightningModule, norm: float) -> None:
        share = sum(self._clipped) / max(1, len(self._clipped))
        stage.log_dict({"gradients/norm": norm, "gradients/clipped_share": share})
        stage.log("gradients/clipped_steps", float(self.num_clipped))
        stage.log("gradients/nonfinite_steps", float(self.num_nonfinite))

    def _report(self, trainer: Trainer, step: int, where: str, taken: str) -> None:
        """Count, say, and stop when there is no end to it."""
        self.num_nonfinite += 1
        self.num_in_a_row += 1
        rank_zero_warn(
            f"step {step}: the gradients are not finite ({where}); {taken}. "
            f"{self.num_nonfinite} such steps in this run, {self.num_in_a_row} in a row."
        )
        log_scalars(trainer, {"gradients/nonfinite_steps": float(self.num_nonfinite)})
        if self.num_in_a_row >= self.patience:
            raise TrainingDiverged(
                f"step {step}: the gradients were not finite {self.num_in_a_row} times in a row ({where}). Go on from "
                "the last checkpoint with a lower learning_rate, a longer warm-up, or trainer.precision bf16-mixed "
                "or 32-true in place of 16-mixed."
            )

    def _warn_of_none(self, trainer: Trainer) -> None:
        if not self._seen_none:
            strategy = type(trainer.strategy).__name__
            rank_zero_warn(f"{strategy} shows no gradients, so neither norm nor clipping nor bad values are counted")
        self._seen_none = True


def _engine(trainer: Trainer) -> Any:
    """DeepSpeed's engine; None under any other strategy."""
    return getattr(trainer.strategy, "deepspeed_engine", None)


def _drop(trainer: Trainer, stage: LightningModule) -> None:
    """Have the optimiser find no gradients; a loss scaler leaves the step out itself."""
    if getattr(trainer.precision_plugin, "scaler", None) is None:
        for value in stage.parameters():
            value.grad = None


def _blame(stage: LightningModule) -> str:
    names = nonfinite_gradients(stage.named_parameters())
    if not names:
        return "each of them is, here, but their norm is not"
    return f"first {names[0]}, {len(names)} parameters in all"


def _is_clipped(trainer: Trainer, stage: LightningModule, norm: float) -> bool:
    limit = trainer.gradient_clip_val
    if not limit:
        return False
    if trainer.gradient_clip_algorithm == "value":
        largest = largest_gradient(stage.named_parameters())
        return largest is not None and float(largest) > limit
    return norm > limit


def _over_shards(trainer: Trainer, norm: torch.Tensor) -> torch.Tensor:
    """The whole norm where every rank holds a share of each gradient (FSDP): its squares add up."""
    if hasattr(norm, "full_tensor"):  # a distributed tensor knows the others' shares
        return norm.full_tensor()  # type: ignore[operator]
    from lightning.pytorch.strategies import FSDPStrategy

    if not isinstance(trainer.strategy, FSDPStrategy):
        return norm
    total: Any = trainer.strategy.reduce(norm.square(), reduce_op="sum")
    return total.sqrt()


Named = Iterable[tuple[str, nn.Parameter]]


def gradient_norm(named: Named) -> torch.Tensor | None:
    """The L2 norm over all gradients, None where there are none; not finite if one of them is not."""
    gradients = [value.grad for _, value in named if value.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None


def largest_gradient(named: Named) -> torch.Tensor | None:
    """The largest absolute value in any gradient, None where there are none."""
    gradients = [value.grad for _, value in named if value.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, float("inf")) if gradients else None


def nonfinite_gradients(named: Named) -> list[str]:
    """Names of the parameters whose gradients hold a value that is not finite, in order."""
    return [name for name, value in named if value.grad is not None and not bool(value.grad.isfinite().all())]
