"""From what a call asks for to the rules of the loop."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from promptnet.inference.sampling.conditions import Networks, PlainPrompts, SubjectPrompts
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.fusion import FusionSampling
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, GuidanceRescale, Refinement
from promptnet.inference.sampling.loop import Rule
from promptnet.inference.sampling.requests import Request

Generators = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True)
class RowNoise:
    """Standard normal noise for some rows, each from its own generator where there is one for each.

    Args:
        generator: one for all, one for each row of the whole batch, or None for the global one.
        rows: which rows of the batch the noise is for.
    """

    generator: Generators
    rows: tuple[int, ...]

    def __call__(self, like: Tensor) -> Tensor:
        generator = self.generator
        if isinstance(generator, list):
            generator = [generator[row] for row in self.rows]
        return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def build_rules(
    rows: Sequence[Request],
    config: SamplingConfig,
    networks: Networks,
    *,
    prediction: str,
    generator: Generators = None,
) -> list[Rule]:
    """Guidance for rows without a subject; refinement and fusion for those with one.

    Args:
        rows: the batch; subjects on the networks' device.
        parameters: all of them.
        networks: what makes conditions.
        prediction: what the U-Net predicts.
        generator: where the fusion's noise comes from.
    """
    plain = [index for index, row in enumerate(rows) if not row.subjects]
    held = [index for index, row in enumerate(rows) if row.subjects]
    prompts = PlainPrompts(networks, _plain_prompts(rows, config))
    rules: list[Rule] = []
    if plain:
        rules.append(_plain_guidance(rows, plain, config, prompts, networks))
    if held:
        rules += _subject_rules(rows, held, config, prompts, networks, prediction, generator)
    if config.guidance_rescale:
        rules.append(GuidanceRescale(config.guidance_rescale))
    return rules


def _plain_prompts(rows: Sequence[Request], config: SamplingConfig) -> list[str | None]:
    """The prompts without S* that will be needed."""
    found: list[str | None] = [row.negative_prompt for row in rows]
    found += [row.prompt for row in rows if not row.subjects]
    return found + [row.reference_prompt for row in rows if row.subjects and config.class_scale]


def _plain_guidance(
    rows: Sequence[Request], indices: list[int], config: SamplingConfig, prompts: PlainPrompts, networks: Networks
) -> Rule:
    places = torch.tensor(indices, device=networks.device)
    return ClassifierFreeGuidance(
        prompts.condition([rows[i].negative_prompt for i in indices], places),
        prompts.condition([rows[i].prompt for i in indices], places),
        config.guidance_scale,
    )


def _subject_rules(
    rows: Sequence[Request],
    indices: list[int],
    config: SamplingConfig,
    prompts: PlainPrompts,
    networks: Networks,
    prediction: str,
    generator: Generators,
) -> list[Rule]:
    places = torch.tensor(indices, device=networks.device)
    noise = RowNoise(generator, tuple(indices))
    held = [rows[i] for i in indices]
    subjects = SubjectPrompts(
        networks,
        held,
        indices,
        word_positions=config.word_positions,
        level_noise=noise if config.encoder_input == "reference" else None,
    )
    uncond = prompts.condition([row.negative_prompt for row in held], places)
    refinement = Refinement(
        uncond,
        subjects.references(),
        prompts.condition([row.reference_prompt for row in held], places) if config.class_scale else None,
        config.subject_scale,
        config.class_scale,
        each=config.reference_weights == "each",
    )
    if not config.fusion_steps:
        return [refinement]
    fusion = FusionSampling(
        uncond,
        subjects.references(config.pseudo_word_scale),
        noise,
        prediction,
        num_iterations=config.fusion_steps,
        scale=config.fusion_scale,
        eta=config.fusion_eta,
        until=config.fusion_end,
    )
    return [refinement, fusion]
