"""A word table in diffusers' own StableDiffusionPipeline and StableDiffusionXLPipeline, without our encoder.

The words of the first noise level go in as `prompt_embeds`; a callback at the end of a step gives the next ones.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.export.stock import behind, check_pipeline, check_same_steps
from promptnet.export.timed import TimedWords
from promptnet.inference.sampling.schedule import Step, plan
from promptnet.inference.subject.fingerprint import differing, hashes_of
from promptnet.inference.subject.lora import apply_loras
from promptnet.models.text import PromptStates
from promptnet.models.text_encoders import TextEncoders, text_encoders_of

_BASE_PARTS = ("unet", "text_encoder", "text_encoder_2")
_MOST_ROWS = 16  # of one call of the text encoders


@contextmanager
def in_stock_with_words(
    pipe: Any,
    words: TimedWords,
    prompt: str,
    *,
    negative_prompt: str | None = None,
    num_images: int = 1,
    num_inference_steps: int = 50,
    guidance_scale: float = 5.0,
    text_layer: Any = None,
) -> Iterator[dict[str, Any]]:
    """Give what to call a stock pipeline with, so that it draws with the words of each noise level.

        words = load_words("me-word-table.safetensors")
        with in_stock_with_words(pipe, words, "a photo of S*") as arguments:
            images = pipe(**arguments).images

    The table's LoRA acts in the rows that hold S*, in this thread, inside the block. Lost is what `in_stock_pipeline`
    keeps: words that depend on the image that is drawn.

    Args:
        pipe: diffusers' StableDiffusionPipeline or StableDiffusionXLPipeline.
        words: the subject's.
        prompt: with S* in it.
        negative_prompt: what to move away from.
        num_images: images.
        num_inference_steps: denoising steps.
        guidance_scale: of classifier-free guidance.
        text_layer: the layer that our pipeline's config names, if it names one.

    Raises:
        ExportError: the pipeline is not one of the two, or has another base model. While drawing: the steps are others
            than was said.
        ValueError: the prompt does not mention S*, or is too long.
    """
    check_pipeline(pipe)
    check_base(pipe, words)
    if "S*" not in prompt:
        raise ExportError(f"The prompt {prompt!r} does not mention S*: write S* where the subject should appear.")
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(num_inference_steps, device=pipe._execution_device)
    steps = plan(scheduler)
    states = states_at(pipe, words, prompt, [float(step.timestep) for step in steps], text_layer)
    change = _NextWords(states, steps, num_images)
    first = change.rows(0)
    loras = [*([None] * num_images if guidance_scale > 1 else []), *([words.loras or None] * num_images)]
    with apply_loras(pipe.unet, loras if words.loras else ()):
        yield {
            "prompt_embeds": first["prompt_embeds"],
            **({"pooled_prompt_embeds": first["add_text_embeds"]} if "add_text_embeds" in first else {}),
            "negative_prompt": negative_prompt,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "callback_on_step_end": change,
            "callback_on_step_end_tensor_inputs": list(first),
        }


def check_base(pipe: Any, words: TimedWords) -> None:
    """Refuse a pipeline of another base model.

    Raises:
        ExportError: names the components whose weights differ.
    """
    known = {name: words.fingerprint[name] for name in _BASE_PARTS if name in words.fingerprint}
    if names := differing(known, hashes_of(pipe, tuple(known))):
        raise ExportError(
            f"The word table was made with another base model: the weights of {', '.join(names)} differ. Load the one "
            "that it was made with."
        )


@torch.no_grad()
def states_at(
    pipe: Any, words: TimedWords, prompt: str, timesteps: Sequence[float], text_layer: Any = None
) -> PromptStates:
    """The states (N, T, D), and SDXL's pooled ones (N, P), of a prompt with the words of each timestep."""
    device = pipe._execution_device
    found = text_encoders_of(pipe).text_encoders
    encoders = TextEncoders.of([e.tokenizer for e in found], [e.network for e in found], text_layer)
    given = [{"S*": words.at(timestep).to(device, pipe.unet.dtype)} for timestep in timesteps]
    parts = [
        encoders.encode(
            [prompt] * len(given[start : start + _MOST_ROWS]), given[start : start + _MOST_ROWS], device=device
        )
        for start in range(0, len(given), _MOST_ROWS)
    ]
    hidden = torch.cat([part.hidden_states for part in parts]).to(pipe.unet.dtype)
    pooled = [part.pooled.to(pipe.unet.dtype) for part in parts if part.pooled is not None]
    return PromptStates(hidden, torch.cat(pooled) if pooled else None, ())


@dataclass(frozen=True, eq=False)
class _NextWords:
    """The `callback_on_step_end`.

    Args:
        states: of each step.
        steps: that the pipeline is to take.
        num_images: rows with S*.
    """

    states: PromptStates
    steps: Sequence[Step]
    num_images: int

    def rows(self, index: int) -> dict[str, Tensor]:
        """What the rows with S* are conditioned on in a step, by diffusers' names."""
        found = {"prompt_embeds": self.states.hidden_states[index].expand(self.num_images, -1, -1)}
        pooled = self.states.pooled
        return found if pooled is None else {**found, "add_text_embeds": pooled[index].expand(self.num_images, -1)}

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next step's words, behind the negative prompt's rows."""
        if index == 0:
            check_same_steps(self.steps, pipe.scheduler)
        if index + 1 >= len(self.steps):
            return {}
        return {name: behind(tensors[name], rows) for name, rows in self.rows(index + 1).items()}
