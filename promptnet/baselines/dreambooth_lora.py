"""DreamBooth with low-rank layers (arXiv 2208.12242 with 2106.09685): a rare word, and a LoRA that fills it.

S* is "sks person": the embeddings of a rare word and of the class word, which stay as they are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptnet.baselines.config import DreamBoothLoRAConfig, PriorConfig
from promptnet.baselines.learner import Run, WordLearner, lora_targets
from promptnet.baselines.prior import Drawn, Prior, prior_images, prior_latents, prior_text
from promptnet.baselines.words import word_embeddings
from promptnet.images.load import Source
from promptnet.inference.subject.lora import LoRALayer, initial_loras
from promptnet.inference.subject.subject import Subject
from promptnet.inference.tuning.customize import Callback
from promptnet.inference.tuning.views import Batch


class DreamBoothLoRA(WordLearner):
    """LoRA layers under training, float32, with or without a prior.

    Args:
        words: (L, D), which stay as they are.
        loras: by the U-Net's layers.
        prior: None trains on the person alone.
    """

    def __init__(self, words: Tensor, loras: Mapping[str, LoRALayer], prior: Prior | None = None) -> None:
        super().__init__(words, loras)
        self.prior = prior
        for parameter in self.parameters():
            parameter.requires_grad_()

    def extended(self, batch: Batch) -> Batch:
        return batch if self.prior is None else self.prior.extended(batch)

    def total(self, losses: Tensor) -> Tensor:
        return super().total(losses) if self.prior is None else self.prior.total(losses)


def make_prior(run: Run, config: PriorConfig, cache: Path | None, on_prior: Drawn | None) -> Prior | None:
    """Return the prior of a run; None where its weight is 0."""
    if not config.prior_weight:
        return None
    with torch.inference_mode(False):
        latents = prior_latents(run.own, prior_images(run.pipe, config, run.class_word, cache, on_prior))
    num_timesteps = len(run.own.scheduler.alphas_cumprod)
    text = prior_text(config, run.class_word)
    return Prior(latents, text, config.prior_weight, config.prior_batch_size, num_timesteps, run.draws)


def dreambooth_lora_subject(
    pipe: Any,
    images: Source | Sequence[Source],
    class_word: str = "person",
    config: DreamBoothLoRAConfig | None = None,
    *,
    cache: Path | None = None,
    generator: torch.Generator | None = None,
    progress_bar: bool = True,
    callback: Callback | None = None,
    on_prior: Drawn | None = None,
) -> Subject:
    """Tune a LoRA to one person.

    Args:
        pipe: a PromptNetPipeline; it needs no encoder.
        images: one image or several of the person.
        class_word: what the person is in a sentence.
        config: of the method; None is its defaults.
        cache: folder where prior images are kept; see `prior_images`.
        generator: makes the outcome reproducible.
        progress_bar: whether to show one.
        callback: called after every step.
        on_prior: called after each prior image.

    Returns:
        The subject, on the CPU. If tuning only made things worse it has no LoRA layers.

    Raises:
        ImageError: an image cannot be used.
        TuningError: the loss became infinite or no number.
        ValueError: a parameter is out of range, or the pipeline cannot be tuned.
    """
    config = config or DreamBoothLoRAConfig()
    run = Run(pipe, images, class_word, config, generator)
    words = word_embeddings(pipe, f"{config.identifier} {class_word}")
    prior = make_prior(run, config, cache, on_prior) if config.steps else None

    def make() -> DreamBoothLoRA:
        targets = lora_targets(run.own.unet, config.layers)
        return DreamBoothLoRA(words, initial_loras(targets, config.rank, run.draws), prior)

    found = run.tune(make, progress_bar, callback)
    return run.subject(words, found[1] if found else {})
