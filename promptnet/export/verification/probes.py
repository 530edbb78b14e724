"""What an export is compared at: three noise levels, two seeds, the row with S* and the unconditional one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptnet.export.static_subject import StaticSubject
from promptnet.export.static_words import level_step, noised_reference, subject_prompts
from promptnet.export.timed import TimedWords
from promptnet.inference.sampling.conditions import PlainPrompts, networks_of
from promptnet.inference.sampling.loop import UNetInputs, join_inputs
from promptnet.inference.subject.lora import LoRALayer, RowLoRAs, apply_loras
from promptnet.inference.subject.subject import Subject

LEVELS = (0.1, 0.5, 0.9)
SEEDS = (0, 1)
ROWS = ("unconditional", "subject")


@dataclass(frozen=True, eq=False)
class Probes:
    """Noisy latents and their timesteps.

    Args:
        x: (N, C, h, w).
        timesteps: (N,).
        prompt: with S* in it.
    """

    x: Tensor
    timesteps: tuple[int, ...]
    prompt: str

    @classmethod
    def of(cls, pipe: Any, subject: Subject, prompt: str) -> "Probes":
        """The subject's reference, noised: what its words were made to be read at."""
        num_timesteps = len(pipe.scheduler.alphas_cumprod)
        timesteps = tuple(int(level * num_timesteps) for level in LEVELS for _ in SEEDS)
        found = []
        for place, timestep in enumerate(timesteps):
            generator = torch.Generator().manual_seed(SEEDS[place % len(SEEDS)])
            noise = torch.randn(1, *subject.reference_latents.shape[1:], generator=generator)
            found.append(noised_reference(subject, float(pipe.scheduler.alphas_cumprod[timestep]), noise))
        return cls(torch.cat(found).to(pipe.unet.device, pipe.unet.dtype), timesteps, prompt)


@torch.no_grad()
def exact_outputs(pipe: Any, subject: Subject, probes: Probes) -> Tensor:
    """The U-Net's outputs (N, 2, C, h, w) with words of each noise level and the LoRA in the row with S* alone.

    Several reference images are averaged by their weights, as guidance does.
    """
    references = subject_prompts(pipe, subject, [probes.prompt])
    found = []
    for x, timestep in _each(probes):
        step = level_step(pipe, timestep)
        conditions, weights = references.references().conditions, subject.weights.tolist()
        inputs = [_unconditional(pipe, x), *(condition.inputs(x, step) for condition in conditions)]
        outputs = _outputs(pipe, x, timestep, inputs)
        person = sum(weight * output for weight, output in zip(weights, outputs[1:], strict=True))
        found.append(torch.stack([outputs[0], torch.as_tensor(person)]))
    return torch.stack(found).float().cpu()


@torch.no_grad()
def static_outputs(pipe: Any, static: StaticSubject, probes: Probes, *, with_lora: bool) -> Tensor:
    """The same as hosts of files draw: one set of words, and the LoRA in both rows."""
    words = static.words.to(pipe.unet.device, pipe.unet.dtype)
    networks = networks_of(pipe)
    encoded = networks.text_encoders.encode([probes.prompt], [{"S*": words}], device=networks.device)
    loras = {name: lora.to(pipe.unet.device) for name, lora in static.loras.items()} if with_lora else None
    found = []
    for x, timestep in _each(probes):
        inputs = [_unconditional(pipe, x), networks.inputs(encoded.hidden_states, encoded.pooled, x)]
        found.append(_outputs(pipe, x, timestep, inputs, loras))
    return torch.stack(found).float().cpu()


@torch.no_grad()
def timed_outputs(pipe: Any, timed: TimedWords, probes: Probes) -> Tensor:
    """The same with a table: words of each noise level, and the LoRA in the row with S*."""
    networks = networks_of(pipe)
    loras = {name: lora.to(pipe.unet.device) for name, lora in timed.loras.items()}
    found = []
    for x, timestep in _each(probes):
        words = timed.at(timestep).to(pipe.unet.device, pipe.unet.dtype)
        encoded = networks.text_encoders.encode([probes.prompt], [{"S*": words}], device=networks.device)
        given = RowLoRAs((loras,)) if loras else None
        person = networks.inputs(encoded.hidden_states, encoded.pooled, x, given)
        found.append(_outputs(pipe, x, timestep, [_unconditional(pipe, x), person]))
    return torch.stack(found).float().cpu()


def _each(probes: Probes) -> Sequence[tuple[Tensor, int]]:
    return [(probes.x[place : place + 1], timestep) for place, timestep in enumerate(probes.timesteps)]


def _unconditional(pipe: Any, x: Tensor) -> UNetInputs:
    networks = networks_of(pipe)
    row = torch.zeros(1, dtype=torch.long, device=networks.device)
    return PlainPrompts(networks, [None]).condition([None], row).inputs(x, level_step(pipe, 0))


def _outputs(
    pipe: Any,
    x: Tensor,
    timestep: int,
    parts: Sequence[UNetInputs],
    everywhere: Mapping[str, LoRALayer] | None = None,
) -> Tensor:
    """The U-Net's outputs (R, C, h, w) of some conditions, with their own LoRA, or with one in all rows."""
    inputs = join_inputs(parts)
    own = inputs.loras if isinstance(inputs.loras, RowLoRAs) else ()
    rows = own if everywhere is None else [everywhere] * len(parts)
    with apply_loras(pipe.unet, rows):
        states = inputs.encoder_hidden_states
        batch = x.expand(len(parts), -1, -1, -1)
        return pipe.unet(batch, timestep, encoder_hidden_states=states, **inputs.extra, return_dict=False)[0]
