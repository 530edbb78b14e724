"""Settings checked against a network, layer by layer, and the modes of the one loop that they make of it."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from promptnet.inference.resolution.attention import (
    COMPILED_BEFORE,
    QueryScaling,
    ScaledAttnProcessor,
    never_ran,
    query_scale,
    scaling_actions,
)
from promptnet.inference.resolution.convolution import redilated_conv2d
from promptnet.inference.resolution.dispersion import DispersedKernels
from promptnet.inference.resolution.layers import (
    Layer,
    mixed_attentions,
    num_depths,
    spatial_convolutions,
    spatial_layers,
    uncompiled,
)
from promptnet.inference.resolution.settings import Factors, ResolutionSettings, factor_at
from promptnet.inference.sampling.schedule import Step
from promptnet.models.slots import ConvolutionSlot, asking, convolution_slot_of, shared_place

PLAIN = (1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Adaptation:
    """Settings for one network, every layer known to exist.

    Args:
        settings: what they were made of.
        factors: (vertical, horizontal) by layer.
        damped_factors: the same for the damped pass.
        dispersed: layers whose kernels are dispersed.
        trained_size_px: height and width of the model's own images.
        size_px: height and width wanted.
        kernels: dispersed kernels by layer, of all modes.
    """

    settings: ResolutionSettings
    factors: Factors
    damped_factors: Factors
    dispersed: frozenset[str]
    trained_size_px: tuple[float, float]
    size_px: tuple[int, int]
    kernels: "WeakKeyDictionary[nn.Module, DispersedKernels]" = field(default_factory=WeakKeyDictionary)

    @property
    def area_ratio(self) -> float:
        """How many times as large as trained the image is."""
        return math.prod(self.size_px) / math.prod(self.trained_size_px)

    def modes(self) -> "tuple[ResolutionMode, ResolutionMode]":
        """The adapted mode, and that of the damped pass."""
        settings = self.settings
        return (
            ResolutionMode(self, self.factors, settings.active_steps),
            ResolutionMode(self, self.damped_factors, settings.damped_steps),
        )

    def is_damped(self, share: float | None) -> bool:
        """Whether guidance is damped at this share of the drawing."""
        steps = self.settings.damped_steps
        return bool(steps) and (share is None or _position(share, self.settings) < steps)


def check_settings(
    network: nn.Module, settings: ResolutionSettings, trained_size_px: tuple[float, float], size_px: tuple[int, int]
) -> Adaptation:
    """Hold settings against a U-Net, layer by layer.

    Raises:
        ValueError: a name is of no 3x3 convolution of this network, a dispersed layer has no factor, attention is to be
            scaled that cannot be, or the settings are for another architecture.
    """
    network = uncompiled(network)
    num = num_depths(network)
    if settings.num_blocks not in (None, num):
        raise ValueError(
            f"{settings.name} is for a U-Net with {settings.num_blocks} down blocks, but this "
            f"{type(network).__name__} has {num}: take settings for this architecture, or settings='auto'."
        )
    names = list(spatial_convolutions(network))
    adaptation = Adaptation(
        settings,
        _expanded(settings.factors, names, settings.name),
        _expanded(settings.damped_factors, names, settings.name),
        frozenset(_expanded(dict.fromkeys(settings.dispersed, PLAIN), names, settings.name)),
        trained_size_px,
        size_px,
    )
    if plain := [name for name in adaptation.dispersed if name not in adaptation.factors]:
        raise ValueError(
            f"{settings.name} disperses {min(plain)}, which has no factor: kernels are dispersed while their layer is "
            "re-dilated only, so give it a factor, or leave it out of dispersed."
        )
    if settings.attention and adaptation.area_ratio != 1 and (mixed := mixed_attentions(network)):
        raise ValueError(
            f"{settings.name} scales self-attention, but {mixed[0]} attends to the text and the image at once "
            "(added_kv), which this cannot scale: give settings with attention: false."
        )
    _warn_of_another_ratio(settings, adaptation)
    return adaptation


def _expanded(factors: Factors, names: Iterable[str], source: str) -> dict[str, tuple[float, float]]:
    """By layer what is given by layer or by the start of its name; longer names have precedence."""
    found: dict[str, tuple[float, float]] = {}
    for start, factor in sorted(factors.items(), key=lambda item: len(item[0])):
        matching = [name for name in names if name == start or name.startswith(f"{start}.")]
        if not matching:
            raise ValueError(_no_such_layer(start, source))
        found |= dict.fromkeys(matching, factor)
    return found


def _no_such_layer(name: str, source: str) -> str:
    message = f"{source} names {name}, but this network has no 3x3 convolution of that name."
    if source.startswith("published:sdxl-") and not source.endswith("-repaired"):
        message += f" The published file is wrong there: {source}-repaired is the same with names that exist."
    return message


def _warn_of_another_ratio(settings: ResolutionSettings, adaptation: Adaptation) -> None:
    if settings.size_px is None or settings.trained_size_px is None:
        return
    meant = [round(a / b, 2) for a, b in zip(settings.size_px, settings.trained_size_px, strict=True)]
    given = [round(a / b, 2) for a, b in zip(adaptation.size_px, adaptation.trained_size_px, strict=True)]
    if meant != given:
        warnings.warn(
            f"{settings.name} was made for images {meant[0]} times as high and {meant[1]} times as wide as trained; "
            f"these are {given[0]} and {given[1]}.",
            stacklevel=4,
        )


def _position(share: float, settings: ResolutionSettings) -> float:
    """A share of the drawing, counted in the steps of the settings; rounding must not cost a step."""
    return share * settings.num_steps + 1e-6


class ResolutionMode:
    """A mode of the loop: for the length of one call, layers of the network act at another size.

    The mode travels with the call and no layer keeps any of it, so that moving, offloading and wrapping networks need
    no care, and other threads may call the same network at other sizes.

    Args:
        adaptation: the checked settings.
        factors: by layer.
        num_active: for how many steps of the settings the factors act.
    """

    def __init__(self, adaptation: Adaptation, factors: Factors, num_active: int) -> None:
        self.adaptation, self.factors, self.num_active = adaptation, factors, num_active

    def applied(self, unet: nn.Module, step: Step) -> AbstractContextManager[None]:
        """As the loop enters a mode."""
        return self.at(unet, step.index / step.num_steps)

    @contextmanager
    def at(self, network: nn.Module, share: float | None) -> Iterator[None]:
        """For the length of the block, in this thread, the network's layers act so.

        Args:
            network: the U-Net, or a ControlNet, which has a U-Net's down blocks.
            share: 0 to 1, how much of the drawing is behind; None: as at its start.

        Raises:
            ValueError: somebody else has replaced a layer's convolution.
            RuntimeError: the network ran, but not through these layers.
        """
        network = uncompiled(network)
        if self.adaptation.settings.is_plain:
            yield
            return
        convolutions, attentions = spatial_layers(network)
        redilations, actions = self._redilations(network, convolutions, share)
        scaling = self._scaling(attentions)
        if scaling is not None:
            layers = (layer.modules[0] for layer in attentions.values())
            actions |= scaling_actions(layers, scaling, lambda name: shared_place(network, name))
        with asking(actions):
            yield
        silent = [name for name, redilation in redilations.items() if not redilation.ran]
        if silent:
            raise RuntimeError(
                f"Convolutions were to be re-dilated, but the network never called {', '.join(silent[:3])}"
                f"{' and others' if len(silent) > 3 else ''}: another change to the network goes around them, or it is "
                f"compiled code that has not seen them. {COMPILED_BEFORE}"
            )
        if around := [name for name in redilations if _has_foreign_forward(convolutions[name].modules[0])]:
            raise RuntimeError(
                f"{around[0]} has a forward of somebody else's, who convolves beside the layer and is not re-dilated: "
                "merge what it adds into the layer's weights, or take it off."
            )
        if scaling is not None:
            for name, layer in attentions.items():
                if not scaling.ran(layer.modules[0]):
                    raise RuntimeError(never_ran(name))

    def factors_at(self, share: float | None) -> dict[str, tuple[float, float]]:
        """What acts at this share of the drawing, by layer; what is plain is left out."""
        settings = self.adaptation.settings
        position = 0.0 if share is None else _position(share, settings)
        if position >= self.num_active:
            return {}
        step = math.floor(position)
        found = {
            name: (
                factor_at(vertical, step, self.num_active, settings.progressive),
                factor_at(horizontal, step, self.num_active, settings.progressive),
            )
            for name, (vertical, horizontal) in self.factors.items()
        }
        return {name: factor for name, factor in found.items() if factor != PLAIN}

    def disperses(self, share: float | None) -> bool:
        """Whether dispersed layers are at this share of the drawing."""
        steps = self.adaptation.settings.dispersed_steps
        return bool(steps) and (share is None or _position(share, self.adaptation.settings) < steps)

    def _redilations(
        self, network: nn.Module, layers: Mapping[str, Layer], share: float | None
    ) -> "tuple[dict[str, _Redilation], dict[str, Any]]":
        """By the layer's name what it does itself, and by the key of a place what is to be asked."""
        factors = self.factors_at(share)
        dispersed = self.adaptation.dispersed if factors and self.disperses(share) else frozenset()
        found: dict[str, _Redilation] = {}
        actions: dict[str, Any] = {}
        if problem := problem_of(network, layers, factors):
            raise ValueError(problem)
        for name in factors.keys() & layers.keys():  # a ControlNet has no up blocks
            for module in layers[name].modules:
                redilation = self._redilation(module, factors[name], disperse=name in dispersed)
                actions[_place(layers[name], module)] = redilation
                found.setdefault(name, redilation)  # the layer itself comes before its adapters
        return found, actions

    def _redilation(self, module: nn.Module, factor: tuple[float, float], *, disperse: bool) -> "_Redilation":
        settings, known = self.adaptation.settings, self.adaptation.kernels
        kernels = known.setdefault(module, DispersedKernels(settings.dispersion)) if disperse else None
        return _Redilation(factor, kernels, settings.match_plain_size)

    def _scaling(self, layers: Mapping[str, Layer]) -> QueryScaling | None:
        ratio = self.adaptation.area_ratio
        if not self.adaptation.settings.attention or ratio == 1:
            return None
        if twice := [name for name, layer in layers.items() if _scales_already(layer.modules[0])]:
            raise ValueError(
                f"{twice[0]} has a ScaledAttnProcessor, so its attention would be scaled twice: take that processor "
                "off, or leave attention to it (attention: false in the settings)."
            )
        return QueryScaling(_ScaleAt(ratio))


def _scales_already(attention: nn.Module) -> bool:
    return isinstance(getattr(attention, "processor", None), ScaledAttnProcessor)


@dataclass(frozen=True)
class _ScaleAt:
    """s from the number of tokens, at a ratio of areas."""

    area_ratio: float

    def __call__(self, tokens: int) -> float:
        return query_scale(tokens, self.area_ratio)


class _Redilation:
    """What a convolution does in a call in place of its own `_conv_forward`."""

    def __init__(self, factor: tuple[float, float], kernels: DispersedKernels | None, match_plain_size: bool) -> None:
        self.match_plain_size, self.kernels, self.ran = match_plain_size, kernels, False
        # A dispersed kernel already reaches twice as far. As text: compiled code may take numbers for variable ones.
        self.factor = " ".join(repr(float(each if kernels is None else each / 2)) for each in factor)

    def __call__(self, layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.ran = True
        return redilated_conv2d(
            x,
            weight if self.kernels is None else self.kernels(weight),
            bias,
            factor=[float(each) for each in self.factor.split(" ")],
            stride=layer.stride,
            match_plain_size=self.match_plain_size,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
        )


def _place(layer: Layer, module: nn.Module) -> str:
    """The key under which a convolution's slot looks."""
    assert isinstance(module, nn.Conv2d)
    slot = convolution_slot_of(module)
    assert slot is not None, layer.name
    return slot.places[0].key


# -- what cannot be adapted -------------------------------------------------------------------------------------------


def problem_of(network: nn.Module, layers: Mapping[str, Layer], factors: Iterable[str]) -> str:
    """What keeps these layers from being re-dilated as they are now; "" if nothing does.

    Args:
        network: a U-Net, or a ControlNet, which has no up blocks.
        layers: its convolutions.
        factors: names of those that are to be re-dilated.
    """
    for name in factors:
        if name not in layers:
            if getattr(network, name.partition(".")[0], None) is None or not hasattr(network, "up_blocks"):
                continue
            return (
                f"{name} was re-dilated and is no more a 3x3 convolution that can be: somebody has replaced it. Undo "
                "that, or adapt the resolution again."
            )
        if any(_is_replaced(module) for module in layers[name].modules):
            return (
                f"{name} already has a convolution of somebody else's (its _conv_forward was replaced): undo that "
                "before adapting the resolution."
            )
        if kinds := [type(wrapper).__name__ for wrapper in layers[name].wrappers if _convolves_by_itself(wrapper)]:
            return (
                f"{name} has an adapter that convolves by itself ({kinds[0]}, {type_of_adapter(layers[name])}) and "
                "would stay plain: merge it (fuse_lora(), or merge() of the layer), or disable it."
            )
    return ""


def _is_replaced(module: nn.Module) -> bool:
    own = vars(module).get("_conv_forward")
    is_foreign = own is not None and not (isinstance(own, ConvolutionSlot) and own.convolution is module)
    return is_foreign or getattr(type(module), "_conv_forward", None) is not nn.Conv2d._conv_forward


def _convolves_by_itself(wrapper: Any) -> bool:
    """Whether peft's adapter is at work and is not LoRA, whose first layer is a convolution that can be re-dilated."""
    if wrapper.disable_adapters or wrapper.merged:
        return False
    names = set(wrapper.active_adapters)
    if not hasattr(wrapper, "lora_A"):
        return any(names & set(getattr(wrapper, each, ())) for each in wrapper.adapter_layer_names)
    variants = {**getattr(wrapper, "lora_variant", {}), **getattr(wrapper, "lora_magnitude_vector", {})}  # DoRA
    return bool(names & set(variants))


def type_of_adapter(layer: Layer) -> str:
    """What peft calls the kind of a layer's adapter, from its module: "loha", "lokr", "lora"."""
    return type(layer.wrappers[0]).__module__.split(".")[-2]


def _has_foreign_forward(module: nn.Module) -> bool:
    """Whether somebody has put a forward around the layer; offloading does, and goes through the layer."""
    own = vars(module).get("forward")
    is_own = own is None or getattr(own, "__func__", None) is type(module).forward
    return not is_own and not hasattr(module, "_hf_hook")


def layer_depths(network: nn.Module, names: Mapping[str, object]) -> dict[str, int]:
    """Depth by layer, in the network's order, for those named."""
    layers = spatial_convolutions(uncompiled(network))
    return {name: layer.depth for name, layer in layers.items() if name in names}
