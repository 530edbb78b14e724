"""One line that adapts any diffusers pipeline with a U-Net to a size, and its undoing.

    with adapt_resolution(pipe, 2048, 2048, num_inference_steps=50):
        image = pipe(prompt, height=2048, width=2048, num_inference_steps=50).images[0]

It is the network that is adapted, for whichever pipeline calls it: pipelines made with `from_pipe`, copies, loops of
one's own. Two hooks on the network's calls ask each call for its timestep and its pipeline (`calling.py`). In between,
layers act as the timestep says; they are found anew in each call, so it does not matter what is moved, offloaded,
wrapped or compiled before or after. What is not followed is refused: a pipeline whose U-Net was replaced, a ControlNet
that came later, a U-Net of another class made of an adapted one.
"""

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from numbers import Real
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from promptnet.inference.resolution.auto import automatic_settings
from promptnet.inference.resolution.calling import (
    Caller,
    attach,
    called_networks,
    control_networks,
    detach,
    handles_of,
    is_called_by,
    pipeline_on_the_stack,
)
from promptnet.inference.resolution.damped_batch import has_halves
from promptnet.inference.resolution.explain import explanation
from promptnet.inference.resolution.layers import has_mid_block, num_depths, uncompiled
from promptnet.inference.resolution.mode import Adaptation, check_settings
from promptnet.inference.resolution.settings import ResolutionSettings, load_settings

SettingsSource = str | Path | Mapping[str, Any] | ResolutionSettings
# Of a bare network's timesteps; pipelines say it in their scheduler.
_NUM_TRAIN_TIMESTEPS = 1000


def adapt_resolution(
    pipe_or_unet: Any,
    height: int,
    width: int,
    *,
    trained_size: int | tuple[int, int] | None = None,
    settings: SettingsSource = "auto",
    vae_scale_factor: int = 8,
    num_inference_steps: int | None = None,
    timesteps: Sequence[float] | Tensor | None = None,
) -> "ResolutionHandle":
    """Adapt a pipeline or a U-Net to draw at a size it was not trained for, until `.remove()`.

    A second call replaces the first. A pipeline's ControlNets are adapted with its U-Net. Other pipelines with the same
    U-Net draw adapted too, each with its own timesteps and guidance.

    Args:
        pipe_or_unet: a diffusers pipeline with a U-Net, or a U-Net (images or video).
        height: of the images, in pixels.
        width: of the images, in pixels.
        trained_size: side of the images that the model was trained on, or (height, width), in pixels; default as the
            U-Net's config says.
        settings: "auto", "published:..." (`published_names()`), a YAML file, a mapping or `ResolutionSettings`.
        vae_scale_factor: pixels for each latent, for a bare U-Net; a pipeline's is read from its VAE.
        num_inference_steps: length of the drawing. Without it, what the settings say of its start acts all through.
        timesteps: of a loop of your own; default those of the pipeline's scheduler, or of diffusers' spacings.

    Returns:
        the handle: a context manager with `.remove()` and `.explain()`.

    Raises:
        ValueError: there is no U-Net, a size is not possible, or the settings do not fit the network.
    """
    pipe = None if isinstance(pipe_or_unet, nn.Module) else pipe_or_unet
    unet = pipe_or_unet if pipe is None else getattr(pipe, "unet", None)
    if not isinstance(unet, nn.Module):
        raise ValueError(f"{type(pipe_or_unet).__name__} has no U-Net: give a pipeline with a .unet, or the U-Net.")
    num_blocks = num_depths(uncompiled(unet))
    scale = vae_scale_factor if pipe is None else _vae_scale_factor(pipe, vae_scale_factor)
    size_px = _checked_size(height, width, scale)
    trained_px = _trained_size_px(unet, trained_size, scale)
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps} must be at least 1, or None.")
    chosen = (
        automatic_settings(
            num_blocks,
            trained_px,
            size_px,
            num_inference_steps,
            trained_latents=round(max(trained_px) / scale),
            has_mid_block=has_mid_block(unet),
        )
        if isinstance(settings, str) and settings == "auto"
        else load_settings(settings)
    )
    if chosen.drawn_size_px is not None:
        generated = "{1}x{0}".format(*chosen.drawn_size_px)
        raise ValueError(
            f"{chosen.name} draws at {generated} and resizes the image, which only PromptNetPipeline does: draw at "
            f"{generated} and resize it yourself, or leave drawn_size_px out."
        )
    adaptation = check_settings(unet, chosen, trained_px, size_px)
    handle = ResolutionHandle(unet, adaptation, pipe=pipe, num_inference_steps=num_inference_steps, scale=scale)
    if timesteps is not None:
        handle.timesteps = [float(t) for t in timesteps]
    return handle


def active_handle(unet: nn.Module) -> "ResolutionHandle | None":
    """The handle that adapts this network now."""
    found = next(iter(reversed(handles_of(uncompiled(unet)))), None)
    return cast("ResolutionHandle | None", found)


def _vae_scale_factor(pipe: Any, default: int) -> int:
    config = getattr(getattr(pipe, "vae", None), "config", None)
    channels = getattr(config, "block_out_channels", None)
    return 2 ** (len(channels) - 1) if channels else default


def _checked_size(height: int, width: int, scale: int) -> tuple[int, int]:
    for name, size in (("height", height), ("width", width)):
        if size < scale or size % scale:
            raise ValueError(f"{name}={size} pixels must be a multiple of {scale}, the pixels of one latent.")
    return height, width


def _trained_size_px(unet: nn.Module, given: int | tuple[int, int] | None, scale: int) -> tuple[int, int]:
    if given is None:
        sample_size = getattr(uncompiled(unet), "config", {}).get("sample_size")
        if not sample_size:
            raise ValueError("This U-Net's config has no sample_size: give trained_size, in pixels.")
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return height * scale, width * scale
    sides = tuple(given) if isinstance(given, (tuple, list)) else (given, given)
    if len(sides) != 2 or not all(_is_side(side) for side in sides):
        raise ValueError(f"trained_size={given!r} must be a number of pixels of at least 1 pixel, or (height, width).")
    return int(sides[0]), int(sides[1])


def _is_side(side: Any) -> bool:
    """Whether it is a whole number of pixels; 32.0 is one."""
    return isinstance(side, Real) and not isinstance(side, bool) and float(side).is_integer() and float(side) >= 1


class ResolutionHandle:
    """What `adapt_resolution` gives back. Removing it leaves the networks plain, bit for bit.

    Args:
        unet: the network; perhaps compiled.
        adaptation: settings checked against it.
        pipe: its pipeline, for ControlNets, timesteps and noise damping.
        num_inference_steps: None for always active.
        scale: pixels for each latent.
    """

    def __init__(
        self, unet: nn.Module, adaptation: Adaptation, *, pipe: Any, num_inference_steps: int | None, scale: int
    ) -> None:
        network = uncompiled(unet)
        for earlier in handles_of(network):
            earlier.remove() if earlier.network is network else detach(network, earlier)
        self.network, self.adaptation, self.num_inference_steps = network, adaptation, num_inference_steps
        self.latent_size = (adaptation.size_px[0] // scale, adaptation.size_px[1] // scale)
        self.timesteps: list[float] = []
        self.adapted, self.damped = adaptation.modes()
        self.is_active = True
        self._pipe = (lambda: None) if pipe is None else weakref.ref(pipe)
        self._drawing = threading.local()  # first and last timestep of a loop of one's own
        self._said: set[Any] = set()
        self._damps = bool(adaptation.settings.damped_steps) and self._can_damp(pipe)
        self._networks = [network, *control_networks(pipe)]
        for each in self._networks:
            attach(each, self)
        is_plain = adaptation.settings.is_plain
        self._undo = [] if is_plain else [_refuse_conversion(network, self), _watch_pipeline(pipe, self)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies of an adapted network are adapted as long as it is."""
        return self

    @property
    def settings(self) -> ResolutionSettings:
        return self.adaptation.settings

    @property
    def damps_guidance(self) -> bool:
        """Whether guidance is noise-damped: settings ask for it, and the pipeline's guidance has two halves."""
        return self._damps

    def remove(self) -> None:
        """Undo the adaptation. Again, or after another one took its place: nothing."""
        if not self.is_active:
            return
        self.is_active = False
        for network in self._networks:
            detach(network, self)
        for undo in self._undo:
            undo()

    def __enter__(self) -> Self:
        if not self.is_active:
            raise ValueError("This adaptation was removed: call adapt_resolution again.")
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def explain(self) -> str:
        """A table of what is adapted now: layer, depth, factor, active steps."""
        if not self.is_active:
            return f"{self.settings.name}: removed, nothing is adapted"
        text = explanation(
            self.network, self.adaptation, self.latent_size, self.num_inference_steps, damps=self.damps_guidance
        )
        if (pipe := self._pipe()) is not None and (problem := self._problem_of(pipe)):
            return f"{text}\n{problem}"
        return text

    # -- what calls are asked, and what they ask ----------------------------------------------------------------------

    def acts_as_unet(self, network: nn.Module) -> bool:
        """Whether this network, or the one that it is a copy of, is not a ControlNet."""
        return network is self.network or getattr(network, "up_blocks", None) is not None

    def share(self, timestep: Any, caller: Caller | None = None) -> float | None:
        """How much of the drawing is behind at a timestep, 0 to 1; None if everything is always active.

        The scheduler of the pipeline that calls says it. In a loop of one's own it is looked up in the timesteps given,
        in those of the handle's pipeline, or in those of diffusers' spacings, if possible in one that starts as this
        drawing did: at a timestep of their own, several would do.
        """
        if self.num_inference_steps is None:
            return None
        t = float(timestep.reshape(-1)[0]) if isinstance(timestep, Tensor) else float(timestep)
        timesteps = self._known_timesteps(t, caller)
        if timesteps:
            nearest = min(range(len(timesteps)), key=lambda index: abs(timesteps[index] - t))
            return nearest / len(timesteps)
        return self._guessed_share(t, self.num_inference_steps)

    def _known_timesteps(self, t: float, caller: Caller | None) -> list[float]:
        if caller is not None:
            return _timesteps_of(caller.scheduler)
        timesteps = self.timesteps or _timesteps_of(getattr(self._pipe(), "scheduler", None))
        return timesteps if any(abs(each - t) < 0.5 for each in timesteps) else self.timesteps

    def _guessed_share(self, t: float, num_steps: int) -> float:
        first, last = getattr(self._drawing, "ends", (-1.0, -1.0))
        first = first if t <= last else t  # timesteps fall, so this is the next drawing's first
        self._drawing.ends = (first, t)
        spaced = _spaced_timesteps(num_steps)
        spaced = [timesteps for timesteps in spaced if abs(timesteps[0] - first) < 0.5] or spaced
        distances = [[abs(each - t) for each in timesteps] for timesteps in spaced]
        nearest = min(distances, key=min)
        return nearest.index(min(nearest)) / num_steps

    def is_damped(self, share: float | None, caller: Caller | None, sample: Tensor) -> bool:
        """Whether this call's guidance is damped. In a loop of one's own, guided rows are the same latents twice."""
        if not self.adaptation.is_damped(share):
            return False
        if caller is None:
            half = len(sample) // 2
            return self._damps and len(sample) % 2 == 0 and torch.equal(sample[:half], sample[half:])
        if has_halves(caller.pipe):
            return bool(caller.pipe.do_classifier_free_guidance)
        if self._pipe() is not caller.pipe:
            self._say_once(type(caller.pipe), _not_damped(self.settings.name, type(caller.pipe).__name__))
        return False

    def fits(self, sample: Tensor) -> bool:
        """Whether latents have the size that is drawn."""
        return tuple(sample.shape[-2:]) == self.latent_size

    def check(self, network: nn.Module, sample: Tensor) -> None:
        """Refuse a call at another size, or whose layers would be recomputed plain.

        Raises:
            ValueError: says what to do.
        """
        height, width = self.latent_size
        if not self.fits(sample):
            raise ValueError(
                f"{type(network).__name__} is adapted for {self.adaptation.size_px[1]}x"
                f"{self.adaptation.size_px[0]} pixels, latents {width}x{height}, but was called with latents "
                f"{sample.shape[-1]}x{sample.shape[-2]}: draw at that size, or remove() the adaptation."
            )
        if torch.is_grad_enabled() and network.training and getattr(network, "is_gradient_checkpointing", False):
            raise ValueError(
                "Gradient checkpointing inside an adapted network would recompute plain layers: call "
                "disable_gradient_checkpointing() on it, or checkpoint the whole call."
            )

    def check_caller(self, caller: Caller) -> None:
        """Refuse a pipeline with networks beside the U-Net that are not adapted; say if it has other steps.

        Raises:
            ValueError: says what to do.
        """
        if problem := self._problem_of(caller.pipe):
            raise ValueError(problem)
        steps = getattr(caller.scheduler, "num_inference_steps", None)
        if self.num_inference_steps is not None and steps not in (None, self.num_inference_steps):
            self._say_once(
                steps,
                f"adapt_resolution was told num_inference_steps={self.num_inference_steps}, but this drawing has "
                f"{steps} steps: factors act for the same share of them. Adapt again with num_inference_steps={steps}.",
            )

    def _problem_of(self, pipe: Any) -> str:
        """Why a pipeline does not draw adapted; "" if it does."""
        kind = type(pipe).__name__
        if self.settings.is_plain:
            return ""
        if not any(handles_of(network) for network in called_networks(pipe)[:1]):
            return (
                f"The U-Net of this {kind} was replaced after adapt_resolution, and the new one is plain: adapt the "
                "pipeline again, or remove() the adaptation."
            )
        if all(handles_of(network) for network in control_networks(pipe)):
            return ""
        return (
            f"The U-Net of this {kind} is adapted, but not its ControlNet, which came later: adapt this pipeline, "
            "adapt_resolution(pipe, ...)."
        )

    def _can_damp(self, pipe: Any) -> bool:
        if pipe is not None and has_halves(pipe):
            return True
        what = "a bare U-Net" if pipe is None else type(pipe).__name__
        warnings.warn(_not_damped(self.settings.name, what), stacklevel=4)
        return False

    def _say_once(self, key: Any, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            warnings.warn(message, stacklevel=2)


def _not_damped(name: str, what: str) -> str:
    return (
        f"{name} asks for noise-damped guidance, but {what} does not call its U-Net with one unconditional and one "
        "conditional row for each image, or does not say so: guidance is not damped. Give a pipeline with plain "
        "classifier-free guidance, or damped_steps: 0."
    )


def _timesteps_of(scheduler: Any) -> list[float]:
    timesteps = getattr(scheduler, "timesteps", None)
    return timesteps.tolist() if isinstance(timesteps, Tensor) else []


# -- what is not followed ---------------------------------------------------------------------------------------------


def _watch_pipeline(pipe: Any, handle: ResolutionHandle) -> Callable[[], object]:
    """Let a pipeline, and copies of it, say if its U-Net is no more the one that was adapted; returns the undoing."""
    if pipe is None or not hasattr(type(pipe), "progress_bar"):
        return lambda: None
    vars(pipe)["progress_bar"] = partial(_checked_progress_bar, handle)
    known = weakref.ref(pipe)

    def undo() -> None:
        if (watched := known()) is not None:
            vars(watched).pop("progress_bar", None)

    return undo


def _checked_progress_bar(handle: ResolutionHandle, *args: Any, **kwargs: Any) -> Any:
    """Every drawing of diffusers' asks for one before its first step."""
    caller: Any = pipeline_on_the_stack() or handle._pipe()
    if handle.is_active and (problem := handle._problem_of(caller)):
        raise ValueError(problem)
    return type(caller).progress_bar(caller, *args, **kwargs)


def _refuse_conversion(network: nn.Module, handle: ResolutionHandle) -> Callable[[], object]:
    """Let a network say that one of another class, made of its weights, is not adapted; returns the undoing."""
    first = getattr(network, "conv_in", None)
    if not isinstance(first, nn.Module):
        return lambda: None

    def check(*_: Any) -> None:
        if handle.is_active and is_called_by("from_unet2d"):
            raise ValueError(
                "This U-Net is adapted by adapt_resolution, and what is made of its weights would be plain: remove() "
                "the adaptation, make the new pipeline, and adapt that."
            )

    return first.register_state_dict_pre_hook(check).remove


# -- a loop of one's own ----------------------------------------------------------------------------------------------


@lru_cache
def _spaced_timesteps(num_steps: int) -> list[Sequence[float]]:
    """The timesteps of a drawing, for each way in which diffusers' schedulers space them."""
    last, stride = _NUM_TRAIN_TIMESTEPS - 1, _NUM_TRAIN_TIMESTEPS // num_steps
    leading = [stride * (num_steps - 1 - i) for i in range(num_steps)]
    trailing = [round(_NUM_TRAIN_TIMESTEPS * (1 - i / num_steps)) - 1 for i in range(num_steps)]
    even = [last * (1 - i / max(1, num_steps - 1)) for i in range(num_steps)]
    return [[t + 1 for t in leading], leading, trailing, even]  # Stable Diffusion's first, as they meet in places
