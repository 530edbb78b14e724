"""A callback that makes the filling of caches take long, as it does at full size."""

import time
from typing import Any

from lightning.pytorch.callbacks import Callback


class SlowEncoding(Callback):
    """Waits `pause_s` before each batch that the VAE encodes."""

    def __init__(self, pause_s: float = 1.0) -> None:
        self.pause_s = pause_s

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the pause before the stage's own encoding."""
        encode = pl_module._encode_moments

        def slowly(images: Any) -> Any:
            time.sleep(self.pause_s)
            return encode(images)

        pl_module._encode_moments = slowly
