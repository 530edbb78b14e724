"""What a pretraining run will need, before anything is loaded: parameters, memory of each device, operations of a step.

The stage is built on the meta device, where tensors have shapes and no data, and one step is taken there: forward,
backward, recomputation. So activations are not estimated from a formula of layers but counted: the most bytes of
tensors that are alive at one time. The rest is arithmetic on the number of parameters:

    encoder's weights           4 bytes a parameter (float32)
    their low-precision copies  2, under mixed precision: autocast keeps them for the step
    gradients                   4, and 4 more for the buckets of DDP
    optimiser                   8 (two moments), 2 with 8 bits
    weight average (EMA)        4
    frozen networks             2 or 4, by the precision; the VAE 4

FSDP divides weights, gradients and optimiser by the number of devices, ZeRO-2 gradients and optimiser. A validation is
counted too, its loss and what it draws: it needs more where a decoder or a CLIP of its own takes more than a step's
activations. What the count leaves out: the allocator's waste, the workspaces of libraries, and the CUDA context,
together often 1 to 3 GB; and that autocast keeps norms in float32.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from promptnet.models.base_model import shapes_only
from promptnet.training.dry_run.meter import metered
from promptnet.training.dry_run.validation import Method, Work, sampling_work
from promptnet.training.pretrain.precision import frozen_dtype, place_frozen
from promptnet.training.pretrain.stage import PretrainStage

GIB = 2**30


@dataclass(frozen=True)
class Setting:
    """How a run is set up, as far as memory and work depend on it.

    Attributes:
        batch_size: a device and step.
        resolution_px: side of the images.
        features: what the data module precomputes, of "latents" and "vision".
        precision: Lightning's.
        num_devices: over all machines.
        strategy: "auto", "ddp", "fsdp" or "deepspeed"; a longer name that holds one of these does as well. With
            "bucket_view" in it, DDP's buckets are the gradients themselves.
        accumulate: batches a step.
        averaged: whether a weight average is kept.
        max_steps: of the run; -1 where that is open.
        num_validation: images that the validation loss is taken on, on every device.
        drawing: what a validation draws, None where it draws nothing.
        validate_every: batches between two validations, None where that is not a number of batches.
        takes_all: whether the devices are all those of this machine, whatever their number.
    """

    batch_size: int = 8
    resolution_px: int = 512
    features: tuple[str, ...] = ()
    precision: str = "bf16-mixed"
    num_devices: int = 1
    strategy: str = "auto"
    accumulate: int = 1
    averaged: bool = False
    max_steps: int = -1
    num_validation: int = 0
    drawing: Method | None = None
    validate_every: int | None = None
    takes_all: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run needs.

    Attributes:
        parameters: by network; the encoder is `promptnet`.
        memory_bytes: on each device, by what it is for.
        step_flops: floating-point operations of one optimiser step on each device.
        setting: of the run.
        validation_flops: of one validation on each device: its loss, its images, and CLIP's look at them.
    """

    parameters: dict[str, int]
    memory_bytes: dict[str, int]
    step_flops: int
    setting: Setting
    validation_flops: int = 0

    def lines(self) -> list[str]:
        """For the console."""
        setting = self.setting
        frozen = sum(count for name, count in self.parameters.items() if name != "promptnet")
        images = setting.batch_size * setting.accumulate
        found = []
        if setting.takes_all:
            found.append(f"devices: all, which are {setting.num_devices} here; for others give --trainer.devices")
        found += [f"parameters: {self.parameters['promptnet']:,} train (promptnet), {frozen:,} are frozen"]
        found += [f"  {name:<28}{count:>16,}" for name, count in self.parameters.items()]
        found.append(f"memory on each of {setting.num_devices} device(s), batch {setting.batch_size}, predicted:")
        found += [f"  {name:<44}{num_bytes / GIB:>8.2f} GiB" for name, num_bytes in self.memory_bytes.items()]
        found.append(f"  {'together':<44}{sum(self.memory_bytes.values()) / GIB:>8.2f} GiB, and 1 to 3 for the device")
        per_image = self.step_flops / images
        found.append(f"a step: {self.step_flops / 1e12:.2f} TFLOP on each device, {per_image / 1e12:.3f} an image")
        between = 0.0  # steps between two validations
        if self.validation_flops:
            found.append(f"a validation: {self.validation_flops / 1e12:.2f} TFLOP on each device{self._generated()}")
            if setting.validate_every:
                between = setting.validate_every / setting.accumulate
                share = self.validation_flops / (self.validation_flops + between * self.step_flops)
                found[-1] += f"; every {between:,.0f} steps it is {share:.1%} of the run's work"
        if setting.max_steps > 0:
            num_validations = int(setting.max_steps / between) if between else 0
            each = self.step_flops * setting.max_steps + self.validation_flops * num_validations
            total = each * setting.num_devices
            found.append(f"the run: {setting.max_steps:,} steps, {total / 1e18:.2f} EFLOP on all devices")
        return found

    def _generated(self) -> str:
        drawing = self.setting.drawing
        return "" if drawing is None else f", {drawing.num_images} images drawn in {drawing.num_steps} steps"


def build_on_meta(options: Mapping[str, Any]) -> PretrainStage:
    """A `PretrainStage` of these arguments, true in shape, without a weight."""
    with shapes_only():
        stage = PretrainStage(**{**options, "start_from": None})
    return stage.to("meta")


def meta_batch(stage: PretrainStage, setting: Setting) -> dict[str, Any]:
    """A batch as the data module of this setting would make it, without data."""
    vae, text_encoder = stage.frozen["vae"].config, stage.frozen["image_encoder"].config
    count, side_px = setting.batch_size, setting.resolution_px
    side = side_px // 2 ** (len(vae.block_out_channels) - 1)
    batch: dict[str, Any] = {
        "sample": torch.arange(count),
        "prompt": ["S*"] * count,
        "size_ids": torch.zeros(count, 6, device="meta"),
    }
    for role in ("reference", "target"):
        if "latents" in setting.features:
            batch[f"{role}_moments"] = torch.empty(count, 2 * vae.latent_channels, side, side, device="meta")
        else:
            batch[f"{role}_pixels"] = torch.empty(count, 3, side_px, side_px, device="meta")
    if "vision" in setting.features:
        num_tokens = (text_encoder.image_size // text_encoder.patch_size) ** 2 + 1
        batch["reference_vision"] = torch.empty(count, num_tokens, text_encoder.hidden_size, device="meta")
    else:
        batch["reference_pixels"] = torch.empty(count, 3, side_px, side_px, device="meta")
    return batch


def take_step(stage: PretrainStage, setting: Setting) -> Work:
    """One batch forward and back on the meta device."""
    low = frozen_dtype(setting.precision)
    place_frozen(stage.frozen, low, torch.device("meta"))
    nn.Module.to(stage.promptnet, dtype=low)  # the activations' format; the weights are counted by themselves
    for value in stage.promptnet.parameters():
        if value.requires_grad:
            value.register_post_accumulate_grad_hook(_drop_gradient)
    batch = meta_batch(stage, setting)
    with metered(existing_tensors(stage, batch)) as meter:
        stage.loss(batch, "train").backward()
    return Work(meter.flops, meter.peak_bytes)


def existing_tensors(stage: PretrainStage, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """Those that are there before a step: weights and the batch."""
    networks = [stage.promptnet, *stage.frozen.values()]
    weights = [value for network in networks for value in [*network.parameters(), *network.buffers()]]
    return weights + [value for value in batch.values() if isinstance(value, torch.Tensor)]


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None  # gradients are counted by themselves


def make_plan(options: Mapping[str, Any], setting: Setting) -> Plan:
    """Plan a run of `PretrainStage(**options)` in this setting."""
    stage = build_on_meta(options)
    networks = {"promptnet": stage.promptnet, **stage.frozen}
    parameters = {name: sum(value.numel() for value in network.parameters()) for name, network in networks.items()}
    trainable = sum(value.numel() for value in stage.promptnet.parameters() if value.requires_grad)
    step = take_step(stage, setting)
    validation = validate(stage, setting)
    frozen = sum(
        value.numel() * value.element_size() for network in stage.frozen.values() for value in network.parameters()
    )
    memory = _memory(trainable, parameters["promptnet"], setting, stage.optimizer)
    memory |= {"frozen networks": frozen, "activations, at their peak": step.peak_bytes}
    if validation.peak_bytes > step.peak_bytes:
        memory["what a validation takes beyond these"] = validation.peak_bytes - step.peak_bytes
    return Plan(parameters, memory, step.flops * setting.accumulate, setting, validation.flops)


def validate(stage: PretrainStage, setting: Setting) -> Work:
    """One validation on the meta device, behind `take_step`: the loss without gradients, then images."""
    total = Work(0, 0)
    if setting.num_validation:
        batch = meta_batch(stage, setting)
        with torch.no_grad(), metered(existing_tensors(stage, batch)) as meter:
            stage.loss(batch, "validation")
        num_batches = math.ceil(setting.num_validation / setting.batch_size)
        total = Work(meter.flops * num_batches, meter.peak_bytes)
    if setting.drawing is None:
        return total
    batch = meta_batch(stage, replace(setting, batch_size=setting.drawing.num_prompts))
    generated = sampling_work(stage, setting.drawing, batch, existing_tensors(stage, batch))
    return Work(total.flops + generated.flops, max(total.peak_bytes, generated.peak_bytes))


def _memory(trainable: int, whole: int, setting: Setting, optimizer: str) -> dict[str, int]:
    """Bytes on each device that depend on the number of parameters."""
    kind, num_devices = setting.strategy.lower(), setting.num_devices
    of_weights = num_devices if "fsdp" in kind else 1
    of_gradients = num_devices if "fsdp" in kind or "deepspeed" in kind else 1
    has_buckets = num_devices > 1 and of_gradients == 1 and "bucket_view" not in kind
    found = {
        "encoder's weights": 4 * whole // of_weights,
        "gradients": 4 * trainable // of_gradients,
        f"optimiser ({optimizer})": (2 if optimizer == "adamw8bit" else 8) * trainable // of_gradients,
    }
    if "mixed" in setting.precision:
        found["low-precision copies of the encoder's weights"] = 2 * whole // of_weights
    if has_buckets:
        found["buckets of DDP"] = 4 * trainable
    if setting.averaged:
        found["weight average"] = 4 * whole // of_weights
    return found


def setting_of(config: Any) -> Setting:
    """The setting in the resolved configuration of `fit`, as LightningCLI holds it before anything is built."""
    data, trainer = _arguments(config["data"]), config["trainer"]
    of_machine, takes_all = _devices(trainer["devices"], str(trainer["accelerator"]))
    callbacks = [str(_get(callback, "class_path")) for callback in trainer["callbacks"] or []]
    strategy = _strategy(trainer["strategy"])
    every = trainer["val_check_interval"]
    vision_id = _arguments(config["model"]).get("vision_id")
    rendered = "size_px" in data  # such data modules keep latents, whatever their options
    return Setting(
        batch_size=data["batch_size"],
        resolution_px=data["size_px"] if rendered else data["resolution_px"],
        features=("latents",) if rendered else tuple(data.get("features") or ()),
        precision=_precision(trainer["precision"]),
        num_devices=of_machine * int(trainer["num_nodes"] or 1),
        strategy=strategy,
        accumulate=int(trainer["accumulate_grad_batches"] or 1),
        averaged=any("WeightAveraging" in name for name in callbacks) and not _is_sharded(strategy),
        max_steps=int(trainer["max_steps"]),
        num_validation=int(data.get("num_validation") or 0),
        drawing=None if "fsdp" in strategy.lower() else _drawing(trainer["callbacks"] or [], vision_id),
        validate_every=int(every) if isinstance(every, int) or str(every).isdigit() else None,
        takes_all=takes_all,
    )


def _devices(given: Any, accelerator: str) -> tuple[int, bool]:
    """How many devices of one machine a run takes, and whether that is all there are, as far as this machine goes."""
    if isinstance(given, list):
        return len(given), False
    text = str(given)
    if text in ("auto", "-1"):
        return 1 if accelerator == "cpu" else max(1, torch.cuda.device_count()), True
    return (len(text.strip(",").split(",")), False) if "," in text else (int(text), False)


def _drawing(callbacks: Any, vision_id: str | None) -> Method | None:
    """What the callbacks draw at a validation, and the CLIP that looks at it."""
    found: dict[str, Any] = {}
    for callback in callbacks:
        name = str(_get(callback, "class_path")).rpartition(".")[2]
        options = _options(callback)
        if name == "ValidationImages":
            found |= {key: options[key] for key in ("num_people", "num_prompts", "num_steps") if key in options}
            found.setdefault("num_people", 4)
        if name == "ValidationMeasures" and (options.get("clip") or vision_id):
            found["clip"] = options.get("clip") or vision_id
    return Method(**found) if "num_people" in found else None


def _options(callback: Any) -> dict[str, Any]:
    try:
        given = _get(callback, "init_args") or {}
    except (KeyError, AttributeError):  # none are named
        return {}
    return dict(given) if isinstance(given, Mapping) else given.as_dict()


def _precision(given: Any) -> str:
    """Lightning's full name of a precision."""
    known = {"None": "32-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
    return known.get(str(given), str(given))


def _strategy(given: Any) -> str:
    if isinstance(given, str):
        return given
    options = _get(given, "init_args") or {}
    has_view = "gradient_as_bucket_view" in options and options["gradient_as_bucket_view"]
    return f"{_get(given, 'class_path')}{' bucket_view' if has_view else ''}"


def _is_sharded(strategy: str) -> bool:
    """Whether Lightning keeps no weight average under it (promptnet.training.run.ema)."""
    return any(kind in strategy.lower() for kind in ("fsdp", "deepspeed", "modelparallel"))


def _get(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, Mapping) or hasattr(value, "__getitem__") else getattr(value, name)


def _arguments(part: Any) -> dict[str, Any]:
    given = part["init_args"]
    return dict(given) if isinstance(given, Mapping) else given.as_dict()


def dry_run(config: Any, resolved: str) -> None:
    """Print the resolved configuration of `fit` and the plan of its run.

    Args:
        config: with `model`, `data` and `trainer`, before anything is built.
        resolved: the same as YAML.

    Raises:
        ValueError: the model is not `PretrainStage` itself: what others do in a step is not known here.
    """
    module, _, name = str(config["model"]["class_path"]).rpartition(".")
    if getattr(importlib.import_module(module), name) is not PretrainStage:
        raise ValueError(f"A dry run plans a run of PretrainStage, but the model is {name}: leave out --dry-run.")
    print(resolved)
    print("\n".join(make_plan(_arguments(config["model"]), setting_of(config)).lines()))
