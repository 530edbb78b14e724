"""A subject in diffusers' own StableDiffusionPipeline and StableDiffusionXLPipeline, exactly.

These take all that is needed from their caller. S* at the first noise level goes in as `prompt_embeds`; a callback at
the end of a step reads the latents and returns the words of the next one. The subject's LoRA acts in the rows that hold
S*, and in calls of this thread alone; adapters that the pipeline has stay as they are.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.inference.editing.card import EditCard, listed_cards
from promptnet.inference.editing.rule import Mixing, check_request_lengths, learned_config, mixing_rule
from promptnet.inference.sampling.arguments import starting_noise
from promptnet.inference.sampling.conditions import Networks, PlainPrompts, SubjectPrompts
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.loop import Term, UNetInputs
from promptnet.inference.sampling.phases import Role
from promptnet.inference.sampling.requests import Request, distinct_subjects, make_requests, moved
from promptnet.inference.sampling.rules import Generators, RowNoise
from promptnet.inference.sampling.schedule import Step, plan
from promptnet.inference.subject.fingerprint import hash_weights, hashes_of
from promptnet.inference.subject.lora import RowLoRAs, apply_loras
from promptnet.inference.subject.subject import Subject
from promptnet.inference.values import generators
from promptnet.models.promptnet import PromptNetModel
from promptnet.models.text_encoders import TextEncoders, text_encoders_of

_BASE_PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")


@contextmanager
def in_stock_pipeline(
    pipe: Any,
    subject: Subject | Sequence[Subject],
    prompt: str,
    *,
    promptnet: Any,
    edits: EditCard | Sequence[EditCard] = (),
    negative_prompt: str | None = None,
    num_images: int = 1,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    subject_scale: float | None = None,
    guidance_rescale: float | None = None,
    eta: float | None = None,
    word_positions: str | None = None,
    encoder_input: str | None = None,
    text_layer: Any = None,
    generator: Generators = None,
    latents: Tensor | None = None,
) -> Iterator[dict[str, Any]]:
    """Give what to call a stock pipeline with, so that it draws what ours draws with plain guidance and edits.

        with in_stock_pipeline(pipe, subject, "a photo of S*", promptnet=encoder, generator=generator) as arguments:
            images = pipe(**arguments).images

    Ours draws the same with `class_scale=0` and `fusion_steps=0`: a class term and Fusion Sampling need more than the
    two conditions that stock pipelines have.

    Args:
        pipe: diffusers' StableDiffusionPipeline or StableDiffusionXLPipeline, or one that inherits their call.
        subject: who `S*` is; a list is `S1*`, `S2*`, ...
        prompt: with S* in it.
        promptnet: the encoder that the subject was made with, or its folder.
        edits: one edit or several; number of steps and eta are theirs unless given.
        negative_prompt: what to move away from; None is not given, which SDXL tells from an empty one.
        num_images: images.
        height: in pixels, default as trained.
        width: in pixels, default as trained.
        num_inference_steps: as all down to `encoder_input`: see `SamplingConfig`, whose defaults are taken.
        text_layer: the layer that our pipeline's config names, if it names one.
        generator: one for all images, or one for each; goes into the pipeline too.
        latents: (B, 4, h, w) to start from, standard normal, in place of the generator's.

    Raises:
        ExportError: the pipeline is not one of the two, the subject has several reference images, or the scale is below
            1, where stock pipelines leave guidance out. While drawing: the steps are others than was said.
        ValueError: as our own pipeline raises, for instance for a subject of another base model.
    """
    check_pipeline(pipe)
    cards = listed_cards(edits)
    given = {
        "num_inference_steps": num_inference_steps,
        "subject_scale": subject_scale,
        "guidance_rescale": guidance_rescale,
        "eta": eta,
        "word_positions": word_positions,
        "encoder_input": encoder_input,
    }
    config = SamplingConfig().replaced(learned_config(cards)).replaced(given)
    rows = make_requests(prompt, subject, negative_prompt, None, num_images)
    generator = generators(generator, len(rows))
    networks = _networks(pipe, promptnet, text_layer)
    _check(pipe, rows, config, networks.promptnet)
    for card in cards:
        card.check(pipe, config.num_inference_steps)
    if cards:
        check_request_lengths(rows, networks)
    scale = pipe.vae_scale_factor
    height, width = height or pipe.unet.config.sample_size * scale, width or pipe.unet.config.sample_size * scale
    with torch.no_grad():
        shape = (len(rows), pipe.unet.config.in_channels, height // scale, width // scale)
        noise = starting_noise(shape, generator, latents, networks.device, networks.dtype)
        words = _ChangingWords.of(
            pipe, rows, config, networks, mixing_rule(cards, networks) if cards else None, generator
        )
        first, negative = words.first(noise), words.negative(noise)
    arguments = {
        **_embeddings("", first),
        **_embeddings("negative_", negative),
        "latents": noise,
        "height": height,
        "width": width,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.subject_scale,
        "guidance_rescale": config.guidance_rescale,
        "eta": config.eta,
        "generator": generator,
        "callback_on_step_end": words,
        "callback_on_step_end_tensor_inputs": words.tensor_inputs(first),
    }
    with apply_loras(pipe.unet, _row_loras(first, guided=config.subject_scale != 1)):
        yield arguments


def _embeddings(prefix: str, inputs: UNetInputs) -> dict[str, Tensor]:
    pooled = _pooled(inputs)
    found = {f"{prefix}prompt_embeds": inputs.encoder_hidden_states}
    name = f"{prefix}pooled_prompt_embeds"
    return found if pooled is None else {**found, name: pooled}


def _pooled(inputs: UNetInputs) -> Tensor | None:
    return inputs.extra.get("added_cond_kwargs", {}).get("text_embeds")


def _row_loras(first: UNetInputs, *, guided: bool) -> RowLoRAs | tuple[()]:
    """The subject's LoRA behind the negative prompt's rows, which have none."""
    if not isinstance(first.loras, RowLoRAs):
        return ()
    rows = first.loras.rows
    return RowLoRAs(((None,) * len(rows) if guided else ()) + rows)


@dataclass(frozen=True, eq=False)
class _ChangingWords:
    """The `callback_on_step_end`: what the U-Net is to be conditioned on in the next step.

    Args:
        subjects: the prompts that hold S*.
        plain: the negative prompts.
        rows: what is drawn.
        places: (B,) of the rows.
        mixing: the edits' rule.
        scheduler: as the pipeline's will be before its first step.
        steps: that the pipeline is to take.
    """

    subjects: SubjectPrompts
    plain: PlainPrompts
    rows: Sequence[Request]
    places: Tensor
    mixing: Mixing | None
    scheduler: Any
    steps: Sequence[Step]

    @classmethod
    def of(
        cls,
        pipe: Any,
        rows: Sequence[Request],
        config: SamplingConfig,
        networks: Networks,
        mixing: Mixing | None,
        generator: Generators,
    ) -> "_ChangingWords":
        rows = moved(rows, networks.device)
        indices = range(len(rows))
        by_level = RowNoise(generator, tuple(indices)) if config.encoder_input == "reference" else None
        subjects = SubjectPrompts(networks, rows, indices, word_positions=config.word_positions, level_noise=by_level)
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(config.num_inference_steps, device=networks.device)
        plain = PlainPrompts(networks, [row.negative_prompt for row in rows])
        places = torch.tensor(indices, device=networks.device)
        return cls(subjects, plain, rows, places, mixing, scheduler, plan(scheduler))

    def inputs(self, x: Tensor, step: Step) -> UNetInputs:
        """What the U-Net gets in the rows with S* for latents in the scale that networks see."""
        term: Term = self.subjects.references().conditions[0].term(Role.subject(0), 1.0)
        terms = [term] if self.mixing is None else self.mixing.terms([term], step)
        return terms[0].inputs(x, step)

    def negative(self, x: Tensor) -> UNetInputs:
        """The same in the rows of the negative prompt."""
        prompts = [row.negative_prompt for row in self.rows]
        return self.plain.condition(prompts, self.places).inputs(x, self.steps[0])

    def first(self, noise: Tensor) -> UNetInputs:
        """The condition of the first step, from standard normal noise."""
        step, x = self.steps[0], noise * self.scheduler.init_noise_sigma
        return self.inputs(self.scheduler.scale_model_input(x, step.timestep), step)

    def tensor_inputs(self, first: UNetInputs) -> list[str]:
        """What the callback must be given."""
        return ["latents", "prompt_embeds", *([] if _pooled(first) is None else ["add_text_embeds"])]

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next step's condition, behind the negative prompt's rows."""
        if index == 0:
            check_same_steps(self.steps, pipe.scheduler)
        if index + 1 >= len(self.steps):
            return {}
        step = self.steps[index + 1]
        found = self.inputs(pipe.scheduler.scale_model_input(tensors["latents"], step.timestep), step)
        states, pooled = found.encoder_hidden_states, _pooled(found)
        changed = {"prompt_embeds": behind(tensors["prompt_embeds"], states)}
        return changed if pooled is None else {**changed, "add_text_embeds": behind(tensors["add_text_embeds"], pooled)}


def check_same_steps(steps: Sequence[Step], scheduler: Any) -> None:
    """Refuse a pipeline that draws in other steps than words were made for.

    Raises:
        ExportError: it does.
    """
    expected = torch.stack([step.timestep for step in steps]).double().cpu()
    found = torch.as_tensor(scheduler.timesteps).double().cpu()
    if found.shape != expected.shape or not torch.allclose(found, expected):
        raise ExportError(
            f"The pipeline draws in {len(found)} steps from timestep {found[0]:g}, but the words were made for "
            f"{len(expected)} from {expected[0]:g}: give num_inference_steps to this function, and leave "
            "timesteps= and sigmas= out."
        )


def behind(old: Tensor, new: Tensor) -> Tensor:
    """The rows with `new` in place of the last ones."""
    return torch.cat([old[: len(old) - len(new)], new.to(old)])


def check_pipeline(pipe: Any) -> None:
    name = type(pipe).__name__
    if name == "PromptNetPipeline":
        raise ExportError("PromptNetPipeline draws subjects itself: pipe(prompt, subject=subject).")
    owner = next((cls for cls in type(pipe).__mro__ if "__call__" in vars(cls)), None)
    if owner not in (StableDiffusionPipeline, StableDiffusionXLPipeline):
        raise ExportError(
            f"Subjects are not exact in {name}: use StableDiffusionPipeline or StableDiffusionXLPipeline, whose loops "
            "are known."
        )


def _networks(pipe: Any, promptnet: Any, text_layer: Any) -> Networks:
    """What makes conditions, of the stock pipeline's own parts and the encoder."""
    if not isinstance(promptnet, torch.nn.Module):
        promptnet = PromptNetModel.from_pretrained(promptnet)
        promptnet = promptnet.to(pipe.unet.device, pipe.unet.dtype).eval()
    encoders = text_encoders_of(pipe).text_encoders
    return Networks(
        TextEncoders.of([e.tokenizer for e in encoders], [e.network for e in encoders], text_layer),
        promptnet,
        pipe._execution_device,
        pipe.unet.dtype,
        pipe.vae_scale_factor,
        pipe.config.get("force_zeros_for_empty_prompt", False),
    )


def _check(pipe: Any, rows: Sequence[Request], config: SamplingConfig, promptnet: Any) -> None:
    if config.subject_scale < 1:
        raise ExportError(
            f"subject_scale={config.subject_scale:g} is below 1, where stock pipelines leave guidance out: "
            "give 1 or more."
        )
    here = {**hashes_of(pipe, _BASE_PARTS), "promptnet": hash_weights(promptnet, "promptnet")}
    subjects = distinct_subjects(rows)
    if not subjects:
        raise ExportError("There is no subject: call the pipeline itself.")
    for subject in subjects:
        if subject.num_references > 1:
            raise ExportError(
                f"The subject has {subject.num_references} reference images, which are as many conditions, and stock "
                "pipelines have one: make a subject of one image, or draw with PromptNetPipeline."
            )
        # The image encoder has read the images already; a stock pipeline has none.
        seen = {name: subject.fingerprint[name] for name in ("image_encoder",) if name in subject.fingerprint}
        subject.check_fingerprint({**here, **seen}, pipe)
