"""Words that depend on nothing, from those that depend on the noise level and the image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from promptnet.export.registry import check_word_positions
from promptnet.export.static_subject import StaticSubject
from promptnet.export.timed import TimedWords
from promptnet.inference.sampling.conditions import SubjectPrompts, networks_of
from promptnet.inference.sampling.requests import make_requests, moved
from promptnet.inference.sampling.schedule import Step
from promptnet.inference.subject.subject import Subject

NUM_LEVELS = 24
NUM_TABLE_LEVELS = 51
NUM_NOISES = 4


def level_step(pipe: Any, timestep: int) -> Step:
    """A step at a trained timestep, for evaluations outside of a drawing."""
    alphas = pipe.scheduler.alphas_cumprod
    alpha = float(alphas[timestep])
    return Step(0, 1, torch.tensor(timestep, device=pipe.unet.device), alpha, 1.0)


def noised_reference(subject: Subject, alpha: float, noise: Tensor) -> Tensor:
    """x_t = sqrt(a) x_0 + sqrt(1-a) e of the first reference image, (B, C, h, w) for noise of that shape."""
    return alpha**0.5 * subject.reference_latents[:1].to(noise) + (1 - alpha) ** 0.5 * noise


def subject_prompts(pipe: Any, subject: Subject, prompts: Sequence[str]) -> SubjectPrompts:
    """What makes S* and the states of these prompts, one row each."""
    networks = networks_of(pipe)
    rows = moved([row for prompt in prompts for row in make_requests(prompt, subject)], networks.device)
    return SubjectPrompts(networks, rows, range(len(rows)))


@torch.no_grad()
def mean_words(pipe: Any, subject: Subject, seed: int = 0) -> Tensor:
    """The mean of S* over noise levels from first to last, and over the reference images by their weights, (L, D).

    A subject with words of its own has those.
    """
    if subject.words is not None:
        return subject.words.float().cpu()
    generator = torch.Generator().manual_seed(seed)
    words, weights = subject_prompts(pipe, subject, ["S*"]), subject.weights.to(pipe.unet.device)
    num_timesteps = len(pipe.scheduler.alphas_cumprod)
    found = []
    for level in range(NUM_LEVELS):
        step = level_step(pipe, (2 * level + 1) * num_timesteps // (2 * NUM_LEVELS))
        noise = torch.randn(1, *subject.reference_latents.shape[1:], generator=generator)
        x = noised_reference(subject, step.alpha, noise).to(pipe.unet.device, pipe.unet.dtype)
        found.append(torch.einsum("n,nld->ld", weights.to(x), words.pseudo_words(x, step)))
    return torch.stack(found).mean(0).float().cpu()


@torch.no_grad()
def timed_words(pipe: Any, subject: Subject, seed: int = 0, num_levels: int = NUM_TABLE_LEVELS) -> TimedWords:
    """The subject's words for each noise level, with its own LoRA.

    An encoder that reads the noisy latents is given the reference, noised several times; the words are their mean.

    Args:
        pipe: the PromptNetPipeline that it was made with.
        subject: who.
        seed: of the noise.
        num_levels: T, from the first timestep to the last.

    Raises:
        ValueError: see `check_exportable`.
    """
    check_exportable(pipe, subject)
    widths = tuple(encoder.width for encoder in networks_of(pipe).text_encoders.text_encoders)
    loras = {name: lora.to("cpu", torch.float32) for name, lora in subject.unet_loras.items()}
    if subject.words is not None:
        return TimedWords(subject.words.float().cpu()[None], torch.zeros(1), widths, loras, subject.fingerprint)
    count = NUM_NOISES if pipe.promptnet.with_noise else 1
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *subject.reference_latents.shape[1:], generator=generator)
    prompts = subject_prompts(pipe, subject, ["S*"] * count)
    timesteps = torch.linspace(0, len(pipe.scheduler.alphas_cumprod) - 1, num_levels).round().long()
    found = [_words_at(pipe, subject, prompts, timestep, noise) for timestep in timesteps.tolist()]
    return TimedWords(torch.stack(found), timesteps.float(), widths, loras, subject.fingerprint)


def _words_at(pipe: Any, subject: Subject, prompts: SubjectPrompts, timestep: int, noise: Tensor) -> Tensor:
    """Words (L, D) at a timestep, the mean over some noise and, by their weights, over the reference images."""
    step = level_step(pipe, timestep)
    x = noised_reference(subject, step.alpha, noise).to(pipe.unet.device, pipe.unet.dtype)
    words = prompts.pseudo_words(x, step).unflatten(0, (len(noise), subject.num_references))
    return torch.einsum("n,bnld->ld", subject.weights.to(words) / len(noise), words).float().cpu()


def check_exportable(pipe: Any, subject: Subject) -> None:
    """Refuse a subject that has no file, or is of another base model.

    Raises:
        ExportError: its words have published positions.
        SubjectError: it was made with another base model or encoder.
    """
    check_word_positions((pipe.config.get("sampling") or {}).get("word_positions", "natural"))
    subject.check(pipe)


def mean_static(pipe: Any, subject: Subject, seed: int = 0) -> StaticSubject:
    """The subject with mean words and its own LoRA.

    Args:
        pipe: the PromptNetPipeline that it was made with.
        subject: who.
        seed: of the noise that the words are read at.

    Raises:
        ValueError: see `check_exportable`.
    """
    check_exportable(pipe, subject)
    encoders = networks_of(pipe).text_encoders.text_encoders
    return StaticSubject(
        mean_words(pipe, subject, seed),
        tuple(encoder.width for encoder in encoders),
        {name: lora.to("cpu", torch.float32) for name, lora in subject.unet_loras.items()},
        subject.class_word,
        subject.fingerprint,
        subject.base,
        {"static": "mean", "levels": NUM_LEVELS, "seed": seed},
    )
