"""What a pipeline says of itself: defaults, sizes, and the state of the call that runs."""

from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.own_call import interrupt, running_call


class StateMixin(DiffusionPipeline):
    """Defaults, sizes, and the state of the running call."""

    unet: Any
    vae_scale_factor: int
    _num_timesteps: int

    @property
    def sampling_defaults(self) -> SamplingConfig:
        """The parameters of a call that names none."""
        return SamplingConfig().replaced(self.config["sampling"])

    @property
    def trained_size_px(self) -> tuple[int, int]:
        """Height and width of the images that the base model was trained on."""
        sample_size: Any = self.unet.config["sample_size"]
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def size_multiple_px(self) -> int:
        """What height and width must be multiples of: one pixel of the U-Net's deepest block."""
        return self.vae_scale_factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def num_timesteps(self) -> int:
        """Steps of the current call; outside of calls, of the last one."""
        call = running_call()
        return call.num_timesteps if call is not None and call.pipe is self else self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to stop after that step; outside of callbacks, all calls stop."""
        return self._interrupt

    @property
    def _interrupt(self) -> bool:
        call = running_call()
        return call is not None and call.pipe is self and call.interrupted

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        interrupt(self, value)
