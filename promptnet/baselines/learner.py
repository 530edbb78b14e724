"""What the baselines have in common: a word that depends on nothing, LoRA layers, and one run of the loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from promptnet.baselines.config import BaselineConfig
from promptnet.images.load import Source
from promptnet.inference.references import EncodedReferences, open_references
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.inference.subject.lora import LoRALayer, apply_loras, key_value_layers
from promptnet.inference.subject.subject import Subject, base_name, check_class_word
from promptnet.inference.tuning.customize import (
    Callback,
    Learner,
    check_tunable,
    loss_with_words,
    own_generator,
    tune,
    with_frozen_networks,
)
from promptnet.inference.tuning.views import Batch, TuningViews, prepare_views
from promptnet.inference.values import generators

_ENCODER = ("promptnet", "image_encoder", "feature_extractor")


class WordLearner:
    """A learner whose S* is one set of words (L, D) in all rows, with or without LoRA layers in the U-Net.

    Args:
        words: (L, D), float32.
        loras: by the U-Net's layers.
    """

    def __init__(self, words: Tensor, loras: Mapping[str, LoRALayer] | None = None) -> None:
        self.words, self.loras, self.decays = words, dict(loras or {}), False

    def parameters(self) -> list[Tensor]:
        """Return what trains."""
        return [matrix for lora in self.loras.values() for matrix in (lora.A, lora.B)]

    def optimizer(self, config: BaselineConfig) -> torch.optim.Optimizer:
        self.decays = config.decay
        return torch.optim.AdamW(self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    def rate_at(self, step: int, num_steps: int) -> float:
        return 1 - step / num_steps if self.decays else 1.0

    def extended(self, batch: Batch) -> Batch:
        return batch

    @contextmanager
    def acting(self, pipe: Any, num_rows: int) -> Iterator[None]:
        with apply_loras(pipe.unet, [self.loras] * num_rows):
            yield

    def losses(self, pipe: Any, references: EncodedReferences, batch: Batch) -> Tensor:
        words = self.words.expand(len(batch.latents), -1, -1)
        return loss_with_words(pipe, batch, lambda noisy: words)

    def total(self, losses: Tensor) -> Tensor:
        return losses.mean()

    def snapshot(self) -> tuple[Tensor, dict[str, LoRALayer]]:
        """Return copies of words and LoRA layers, on the CPU."""
        loras = {
            name: LoRALayer(*(part.detach().cpu().clone() for part in (lora.A, lora.B)))
            for name, lora in self.loras.items()
        }
        return self.words.detach().cpu().clone(), loras


def lora_targets(unet: nn.Module, layers: str) -> dict[str, nn.Module]:
    """Return the layers that get LoRA layers: "kv", or "attention" for all projections of all attentions."""
    if layers == "kv":
        return key_value_layers(unet)
    return {
        f"{name}.{part}": module.get_submodule(part)
        for name, module in unet.named_modules()
        if isinstance(module, Attention)
        for part in ("to_q", "to_k", "to_v", "to_out.0")
    }


class Run:
    """One run of the loop on one person, without PromptNet.

    Args:
        pipe: a PromptNetPipeline, with or without an encoder, all of it on one device.
        images: one image or several of the person.
        class_word: what the person is in a sentence.
        config: of the method.
        generator: makes the outcome reproducible; one number is drawn from it.

    Raises:
        ImageError: an image cannot be used.
        ValueError: the pipeline cannot be tuned.
    """

    def __init__(
        self,
        pipe: Any,
        images: Source | Sequence[Source],
        class_word: str,
        config: BaselineConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        check_class_word(class_word)
        generators(generator)
        check_tunable(pipe)
        self.pipe, self.class_word, self.config = pipe, class_word, config
        self.images = open_references(images)
        self.draws = own_generator(generator)
        with torch.inference_mode(False):
            self.own = with_frozen_networks(pipe)
            for name in _ENCODER:
                vars(self.own)[name] = None
            self.views: TuningViews = prepare_views(self.own, self.images, config, self.draws)

    def tune(self, make: Callable[[], Learner], progress_bar: bool = True, callback: Callback | None = None) -> Any:
        """Run the loop; see `promptnet.inference.tuning.customize.tune`. Without steps return an empty dict."""
        if not self.config.steps:
            return {}
        with torch.inference_mode(False):
            return tune(
                self.own,
                self.views,
                self.config,
                self.draws,
                make,
                keep_last=self.config.keep == "last",
                progress_bar=progress_bar,
                callback=callback,
            )

    def subject(self, words: Tensor, loras: Mapping[str, LoRALayer]) -> Subject:
        """Return the subject with these words (L, D) and the U-Net's LoRA layers, on the CPU."""
        dtype = self.pipe.unet.dtype
        return Subject(
            reference_latents=self.views.references.latents[:1].cpu(),
            vision_states=torch.zeros(1, 0, 0),
            weights=torch.ones(1),
            class_word=self.class_word,
            fingerprint={name: hash_ for name, hash_ in fingerprint(self.pipe).items() if name not in _ENCODER},
            loras={f"unet.{name}": lora.to("cpu", dtype) for name, lora in loras.items()},
            base=base_name(self.pipe),
            words=words.to("cpu", dtype),
        )
