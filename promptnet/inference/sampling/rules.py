"""From what a call asks for to the rules of the loop."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from promptnet.inference.sampling.conditions import Networks, PlainPrompts, SubjectPrompts
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.fusion import FusionSampling
from promptnet.inference.sampling.given_states import GivenStates, States
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, Condition, GuidanceRescale, Refinement
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
    given: GivenStates | None = None,
    timesteps: Sequence[Tensor] = (),
    latent_size: tuple[int, int] | None = None,
) -> list[Rule]:
    """Guidance for rows without a subject; refinement and fusion for those with one.

    Args:
        rows: the batch; subjects on the networks' device.
        config: all parameters.
        networks: what makes conditions.
        prediction: what the U-Net predicts.
        generator: where the fusion's noise comes from.
        given: states of all rows that stand for their prompts or negative prompts.
        timesteps: of the drawing, if they are known.
        latent_size: height and width of the latents, for rows with regions.
    """
    plain = [index for index, row in enumerate(rows) if not row.subjects]
    held = [index for index, row in enumerate(rows) if row.subjects]
    prompts = _Prompts.of(networks, rows, config, given or GivenStates())
    rules: list[Rule] = []
    if plain:
        rules.append(_plain_guidance(plain, config, prompts))
    if held:
        rules += _subject_rules(rows, held, config, prompts, networks, prediction, generator, timesteps, latent_size)
    if config.guidance_rescale:
        rules.append(GuidanceRescale(config.guidance_rescale))
    return rules


@dataclass(frozen=True, eq=False)
class _Prompts:
    """The conditions of rows, from their texts or from states that a caller gives in their place."""

    networks: Networks
    rows: Sequence[Request]
    plain: PlainPrompts
    negatives: PlainPrompts
    given: GivenStates

    @classmethod
    def of(cls, networks: Networks, rows: Sequence[Request], config: SamplingConfig, given: GivenStates) -> "_Prompts":
        """Encode the prompts without S* that will be needed, all at once where one set of encoders reads them."""
        negative: list[str | None] = [row.negative_prompt for row in rows]
        positive: list[str | None] = [row.prompt for row in rows if not row.subjects]
        positive += [row.reference_prompt for row in rows if row.subjects and config.class_scale]
        if networks.negative_encoders is None:
            both = PlainPrompts(networks, negative + positive)
            return cls(networks, rows, both, both, given)
        reading = replace(networks, text_encoders=networks.negative_encoders)
        return cls(networks, rows, PlainPrompts(networks, positive or [""]), PlainPrompts(reading, negative), given)

    def negative(self, indices: Sequence[int]) -> Condition:
        texts = [self.rows[i].negative_prompt for i in indices]
        return self._condition(self.negatives, self.given.negative, texts, indices)

    def positive(self, indices: Sequence[int]) -> Condition:
        return self._condition(self.plain, self.given.prompt, [self.rows[i].prompt for i in indices], indices)

    def reference(self, indices: Sequence[int]) -> Condition:
        return self._condition(self.plain, None, [self.rows[i].reference_prompt for i in indices], indices)

    def _condition(
        self, prompts: PlainPrompts, given: States | None, texts: Sequence[str | None], indices: Sequence[int]
    ) -> Condition:
        places, networks = torch.tensor(indices, device=self.networks.device), self.networks
        if given is None:
            return prompts.condition(texts, places)
        found = given.of_rows(indices, networks.device, networks.dtype)
        return Condition(lambda x, step: networks.inputs(found.hidden, found.pooled, x), places)


def _plain_guidance(indices: list[int], config: SamplingConfig, prompts: _Prompts) -> Rule:
    conditions = prompts.negative(indices), prompts.positive(indices)
    return ClassifierFreeGuidance(*conditions, config.guidance_scale, config.guidance_interval)


def _subject_rules(
    rows: Sequence[Request],
    indices: list[int],
    config: SamplingConfig,
    prompts: _Prompts,
    networks: Networks,
    prediction: str,
    generator: Generators,
    timesteps: Sequence[Tensor],
    latent_size: tuple[int, int] | None,
) -> list[Rule]:
    noise = RowNoise(generator, tuple(indices))
    held = [rows[i] for i in indices]
    subjects = SubjectPrompts(
        networks,
        held,
        indices,
        word_positions=config.word_positions,
        level_noise=noise if config.encoder_input == "reference" else None,
        every=config.pseudo_word_every,
        timesteps=timesteps,
        latent_size=latent_size,
    )
    uncond = prompts.negative(indices)
    refinement = Refinement(
        uncond,
        subjects.references(),
        prompts.reference(indices) if config.class_scale else None,
        config.subject_scale,
        config.class_scale,
        each=config.reference_weights == "each",
        interval=config.guidance_interval,
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
