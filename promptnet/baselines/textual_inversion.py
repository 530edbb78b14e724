"""Textual inversion: a person as a new word, found by the base model's own loss (Gal et al., arXiv 2208.01618).

    v* = argmin_v E[ || eps - eps_theta(z_t, t, c(y, v)) ||^2 ]                                    (equation 2)

Nothing of the base model changes, so the words work wherever a textual-inversion file is read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from promptnet.baselines.config import TextualInversionConfig
from promptnet.baselines.learner import Run, WordLearner
from promptnet.baselines.words import repeated, word_embeddings
from promptnet.images.load import Source
from promptnet.inference.subject.subject import Subject
from promptnet.inference.tuning.customize import Callback


class TextualInversion(WordLearner):
    """Words (L, D) under training, float32."""

    def __init__(self, words: Tensor) -> None:
        super().__init__(words.clone().requires_grad_())

    def parameters(self) -> list[Tensor]:
        return [self.words]


def initial_words(pipe: Any, config: TextualInversionConfig, class_word: str) -> Tensor:
    """Return what the words start from, (L, D): the embedding of a coarse word (section 4.1 of the paper)."""
    return repeated(word_embeddings(pipe, config.initial_word or class_word), config.num_words)


def textual_inversion_subject(
    pipe: Any,
    images: Source | Sequence[Source],
    class_word: str = "person",
    config: TextualInversionConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    progress_bar: bool = True,
    callback: Callback | None = None,
) -> Subject:
    """Find a word for one person.

    Args:
        pipe: a PromptNetPipeline; it needs no encoder.
        images: one image or several of the person.
        class_word: what the person is in a sentence.
        config: of the method; None is its defaults.
        generator: makes the outcome reproducible.
        progress_bar: whether to show one.
        callback: called after every step.

    Returns:
        The subject, on the CPU, with words of its own and no LoRA layers.

    Raises:
        ImageError: an image cannot be used.
        TuningError: the loss became infinite or no number.
        ValueError: a parameter is out of range, or the pipeline cannot be tuned.
    """
    config = config or TextualInversionConfig()
    run = Run(pipe, images, class_word, config, generator)
    start = initial_words(pipe, config, class_word)
    found = run.tune(lambda: TextualInversion(start), progress_bar, callback)
    return run.subject(found[0] if found else start, {})
