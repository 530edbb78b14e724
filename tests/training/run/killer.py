"""A callback that kills its own process, as an operator or a power cut would."""

import os
import signal
from typing import Any

from lightning.pytorch.callbacks import Callback


class KillAt(Callback):
    """SIGKILL after `step` optimiser steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Die, without a word."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
