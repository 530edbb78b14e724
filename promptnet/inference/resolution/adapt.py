"""One line that adapts any diffusers pipeline with a U-Net to a size, and its undoing.

    with adapt_resolution(pipe, 2048, 2048, num_inference_steps=50):
        image = pipe(prompt, height=2048, width=2048, num_inference_steps=50).images[0]

Two hooks on the network's calls are all that stays in it. In between, layers act as the timestep says; they are found
anew in each call, so it does not matter what is moved, offloaded, wrapped or compiled before or after.
"""

import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from promptnet.inference.resolution.auto import automatic_settings
from promptnet.inference.resolution.damped_batch import damped_output, first_half, has_halves
from promptnet.inference.resolution.explain import explanation
from promptnet.inference.resolution.layers import num_depths, uncompiled
from promptnet.inference.resolution.mode import Adaptation, check_settings
from promptnet.inference.resolution.settings import ResolutionSettings, load_settings

SettingsSource = str | Path | Mapping[str, Any] | ResolutionSettings
_ATTRIBUTE = "_promptnet_resolution"
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
) -> "ResolutionHandle":
    """Adapt a pipeline or a U-Net to draw at a size it was not trained for, until `.remove()`.

    A second call replaces the first. A pipeline's ControlNets are adapted with its U-Net.

    Args:
        pipe_or_unet: a diffusers pipeline with a U-Net, or a U-Net (images or video).
        height: of the images, in pixels.
        width: of the images, in pixels.
        trained_size: side of the images that the model was trained on, or (height, width), in pixels; default as the
            U-Net's config says.
        settings: "auto", "published:..." (`published_names()`), a YAML file, a mapping or `ResolutionSettings`.
        vae_scale_factor: pixels for each latent, for a bare U-Net; a pipeline's is read from its VAE.
        num_inference_steps: length of the drawing. Without it, what the settings say of its start acts all through.

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
    return ResolutionHandle(unet, adaptation, pipe=pipe, num_inference_steps=num_inference_steps, scale=scale)


def active_handle(unet: nn.Module) -> "ResolutionHandle | None":
    """The handle that adapts this network now."""
    return vars(uncompiled(unet)).get(_ATTRIBUTE)


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
    height, width = (given, given) if isinstance(given, int) else given
    if height < 1 or width < 1:
        raise ValueError(f"trained_size={given} must be at least 1 pixel.")
    return height, width


class ResolutionHandle:
    """What `adapt_resolution` gives back. Removing it leaves the networks bit-identical to before.

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
        if (earlier := active_handle(unet)) is not None:
            earlier.remove()
        self.adaptation, self.num_inference_steps = adaptation, num_inference_steps
        self.latent_size = (adaptation.size_px[0] // scale, adaptation.size_px[1] // scale)
        self._pipe = (lambda: None) if pipe is None else weakref.ref(pipe)
        self._adapted, self._damped = adaptation.modes()
        self._hooks: list[Any] = []
        self._known: tuple[Tensor | None, list[float]] = (None, [])
        self._calls: list[_CallHooks] = []
        self._drawing = (-1.0, -1.0)  # first and last timestep that a bare network was called with
        self._unet = unet
        self._damps = bool(adaptation.settings.damped_steps) and self._can_damp(pipe)
        vars(uncompiled(unet))[_ATTRIBUTE] = self
        if not adaptation.settings.is_plain:
            for network in map(uncompiled, [unet, *_control_networks(pipe)]):
                self._attach(network)

    @property
    def settings(self) -> ResolutionSettings:
        return self.adaptation.settings

    @property
    def damps_guidance(self) -> bool:
        """Whether guidance is noise-damped: settings ask for it, and the pipeline's guidance has two halves."""
        return self._damps

    def remove(self) -> None:
        """Undo the adaptation. Again, or after another one took its place: nothing."""
        for call in self._calls:
            call.leave()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._calls = [], []
        attributes = vars(uncompiled(self._unet))
        if attributes.get(_ATTRIBUTE) is self:
            del attributes[_ATTRIBUTE]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def explain(self) -> str:
        """Print, and return, a table: layer, depth, factor, active steps."""
        network, steps = uncompiled(self._unet), self.num_inference_steps
        text = explanation(network, self.adaptation, self.latent_size, steps, damps=self._damps)
        print(text)
        return text

    def share(self, timestep: Any) -> float | None:
        """How much of the drawing is behind at a timestep, 0 to 1; None if everything is always active.

        A pipeline's scheduler says it. A bare network's timesteps are looked up in those of diffusers' spacings, if
        possible in one that starts as this drawing did: at a timestep of their own, several would do.
        """
        if self.num_inference_steps is None:
            return None
        t = float(timestep.reshape(-1)[0]) if isinstance(timestep, Tensor) else float(timestep)
        timesteps = self._scheduled()
        if timesteps:
            nearest = min(range(len(timesteps)), key=lambda index: abs(timesteps[index] - t))
            return nearest / len(timesteps)
        first, last = self._drawing
        first = first if t <= last else t  # timesteps fall, so this is the next drawing's first
        self._drawing = (first, t)
        spaced = _spaced_timesteps(self.num_inference_steps)
        spaced = [timesteps for timesteps in spaced if abs(timesteps[0] - first) < 0.5] or spaced
        distances = [[abs(each - t) for each in timesteps] for timesteps in spaced]
        nearest = min(distances, key=min)
        return nearest.index(min(nearest)) / self.num_inference_steps

    def _scheduled(self) -> list[float]:
        """The timesteps of the drawing, where a pipeline has a scheduler."""
        timesteps = getattr(getattr(self._pipe(), "scheduler", None), "timesteps", None)
        if not isinstance(timesteps, Tensor):
            return []
        if self._known[0] is not timesteps:
            self._known = (timesteps, timesteps.tolist())
        return self._known[1]

    def _attach(self, network: nn.Module) -> None:
        call = _CallHooks(self, damped=network is uncompiled(self._unet))
        self._calls.append(call)
        before: Any = torch.compiler.disable(call.before)
        after: Any = torch.compiler.disable(call.after)
        self._hooks += [
            network.register_forward_pre_hook(before, with_kwargs=True),
            network.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]

    def _can_damp(self, pipe: Any) -> bool:
        if pipe is not None and has_halves(pipe):
            return True
        what = "a bare U-Net" if pipe is None else type(pipe).__name__
        warnings.warn(
            f"{self.settings.name} asks for noise-damped guidance, but {what} does not call its U-Net with one "
            "unconditional and one conditional row for each image, or does not say so: guidance is not damped. Give "
            "a pipeline with plain classifier-free guidance, or damped_steps: 0.",
            stacklevel=4,
        )
        return False


@lru_cache
def _spaced_timesteps(num_steps: int) -> list[Sequence[float]]:
    """The timesteps of a drawing, for each way in which diffusers' schedulers space them."""
    last, stride = _NUM_TRAIN_TIMESTEPS - 1, _NUM_TRAIN_TIMESTEPS // num_steps
    leading = [stride * (num_steps - 1 - i) for i in range(num_steps)]
    trailing = [round(_NUM_TRAIN_TIMESTEPS * (1 - i / num_steps)) - 1 for i in range(num_steps)]
    even = [last * (1 - i / max(1, num_steps - 1)) for i in range(num_steps)]
    return [[t + 1 for t in leading], leading, trailing, even]  # Stable Diffusion's first, as they meet in places


def _control_networks(pipe: Any) -> list[nn.Module]:
    controlnet = getattr(pipe, "controlnet", None)
    networks = list(getattr(controlnet, "nets", [controlnet]))
    return [network for network in networks if isinstance(getattr(network, "down_blocks", None), nn.ModuleList)]


class _CallHooks:
    """The hooks around the calls of one network.

    Args:
        handle: what to do in them.
        damped: whether this network's output is what guidance is made of.
    """

    def __init__(self, handle: ResolutionHandle, *, damped: bool) -> None:
        self.handle, self.damped = handle, damped
        self._stack: ExitStack | None = None
        self._fraction: float | None = None
        self._inside = False  # the damped pass calls the network again

    def before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._inside:
            return
        self.leave()
        sample, timestep = _argument(0, "sample", args, kwargs), _argument(1, "timestep", args, kwargs)
        self._check(network, sample)
        self._fraction = self.handle.share(timestep)
        stack = ExitStack()
        stack.enter_context(self.handle._adapted.at(network, self._fraction))
        self._stack = stack

    def after(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._inside or self._stack is None:
            return None
        stack, self._stack = self._stack, None
        if output is None:  # the call failed: undo, and let its own error speak
            stack.__exit__(RuntimeError, RuntimeError("failed"), None)
            return None
        stack.close()
        return damped_output(output, self._damped_pass(network, args, kwargs)) if self._is_damped() else None

    def leave(self) -> None:
        """Undo what an interrupted call has left."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(RuntimeError, RuntimeError("interrupted"), None)

    def _is_damped(self) -> bool:
        handle = self.handle
        if not (self.damped and handle.damps_guidance and handle.adaptation.is_damped(self._fraction)):
            return False
        pipe: Any = handle._pipe()
        return bool(pipe.do_classifier_free_guidance)

    def _damped_pass(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The unconditional half of the batch in the damped mode."""
        num_rows = len(_argument(0, "sample", args, kwargs))
        self._inside = True
        try:
            with self.handle._damped.at(network, self._fraction):
                return self.handle._unet(*first_half(args, num_rows), **first_half(kwargs, num_rows))
        finally:
            self._inside = False

    def _check(self, network: nn.Module, sample: Tensor) -> None:
        height, width = self.handle.latent_size
        if tuple(sample.shape[-2:]) != (height, width):
            raise ValueError(
                f"{type(network).__name__} is adapted for {self.handle.adaptation.size_px[1]}x"
                f"{self.handle.adaptation.size_px[0]} pixels, latents {width}x{height}, but was called with latents "
                f"{sample.shape[-1]}x{sample.shape[-2]}: draw at that size, or remove() the adaptation."
            )
        if torch.is_grad_enabled() and network.training and getattr(network, "is_gradient_checkpointing", False):
            raise ValueError(
                "Gradient checkpointing inside an adapted network would recompute plain layers: call "
                "disable_gradient_checkpointing() on it, or checkpoint the whole call."
            )


def _argument(index: int, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[index] if len(args) > index else kwargs[name]
