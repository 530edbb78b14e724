"""Stage 3 on people without end: a U-Net that reads words, words between words, and people as pseudo-words.

Encoders speak to the base model in pseudo-words, which lie between the words of its vocabulary. A base model that was
trained on words alone reads mixtures badly, so this one sees four kinds of prompts:

- plain captions;
- captions whose colour words are mixtures of words as near to them as the exact colour is (`SoftWords`);
- "a sad portrait of S*", S* being a few pseudo-words that `RecordEncoder` makes of another image's exact record, with
  the differences named: what the prompt names counts, all else stays as the record has it;
- the same with random mixtures of the words that describe the person.

Soft words and pseudo-words are perturbed a little, so that the neighbourhood of a word means what the word means.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from promptnet.datasets.avatars.latents import AvatarLatents
from promptnet.datasets.avatars.person import FIELDS
from promptnet.datasets.stream import sample_rng
from promptnet.models.text import encode_prompts
from promptnet.models.text_encoders import mean_word_norm
from promptnet.training.embedded.soft_words import RecordEncoder, SoftWords, mixed, perturbed
from promptnet.training.embedded.unet import BaseModelStage

_KINDS = ("empty", "plain", "soft", "record", "mixture")


class PeopleBaseStage(BaseModelStage):
    """`BaseModelStage` for `AvatarDataModule`.

    Args:
        shares: probability of each kind of prompt: empty, plain, soft, record, mixture.
        noise: expected norm of the perturbation of soft and pseudo-words, as a share of the words' mean norm.
        base: arguments of `BaseModelStage`.
    """

    def __init__(
        self,
        shares: tuple[float, float, float, float, float] = (0.1, 0.3, 0.15, 0.35, 0.1),
        noise: float = 0.15,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.save_hyperparameters()
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares={shares} must be probabilities of {', '.join(_KINDS)} that sum to one")
        self.shares = shares
        text_encoder = self.frozen["text_encoder"]
        self.word_norm = mean_word_norm(text_encoder)
        self.noise = noise * self.word_norm
        self.soft_words = SoftWords(self.tokenizer)
        self.record_encoder = RecordEncoder(text_encoder.config.hidden_size, self.word_norm)

    def _latents_of(self, split: str) -> Any:
        module: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return AvatarLatents(module.rendered(split), self.frozen["vae"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        kinds = [self._kind(int(sample)) for sample in batch["sample"]]
        loss = self._denoise(batch, "train", kinds)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(kinds))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss with fixed noise on unseen people, by kind of prompt, and what the judge reads in generated images."""
        size = len(batch["index"])
        for kind in ("plain", "soft", "record"):
            loss = self._denoise(batch, "validation", [kind] * size)
            self.log("val/loss" if kind == "plain" else f"val/loss_{kind}", loss, prog_bar=True, batch_size=size)
        if batch_idx * size < self.num_generated and "judge" in self.frozen:
            self._judge(batch, batch_idx)

    def _judge(self, batch: dict[str, Any], batch_idx: int) -> None:
        read = self.frozen["judge"](self._draw(batch["caption"], seed=batch_idx))
        for place, field in enumerate(FIELDS):
            hits = (read[field].argmax(1) == batch["codes"][:, place]).float().mean()
            self.log(f"judge/{field}", hits, batch_size=len(batch["index"]))

    def _kind(self, sample: int) -> str:
        return sample_rng(self.seed, sample, "kind").choices(_KINDS, self.shares)[0]

    def _denoise(self, batch: dict[str, Any], split: str, kinds: list[str]) -> torch.Tensor:
        states = self.states(batch, kinds, noise=self.noise if split == "train" else 0.0)
        latents = self.cached(split, batch["index"])
        return self.denoising_loss(lambda x, t: self.unet(x, t, states).sample, latents, batch["sample"])

    def states(self, batch: dict[str, Any], kinds: list[str], noise: float) -> torch.Tensor:
        """Return text states (B, T, D) of each sample's prompt of this kind; differentiable in records."""
        text_encoder = self.frozen["text_encoder"]
        table = text_encoder.get_input_embeddings().weight
        soft = [kind in ("soft", "record") for kind in kinds]
        texts = [self._text(batch, place, kind) for place, kind in enumerate(kinds)]
        prompts, words = self.soft_words.of(texts, batch["color_weights"], table, soft)
        people = self.record_encoder(batch["record"])
        for place, kind in enumerate(kinds):
            if kind == "record":
                words[place]["S*"] = people[place]
            elif kind == "mixture":
                words[place]["S*"] = self._mixture(batch["identity_words"][place], int(batch["sample"][place]), table)
        words = perturbed(words, batch["sample"], noise)
        return encode_prompts(self.tokenizer, text_encoder, prompts, words).hidden_states

    def _text(self, batch: dict[str, Any], place: int, kind: str) -> str:
        if kind == "empty":
            return ""
        return batch["caption" if kind in ("plain", "soft") else "prompt"][place]

    def _mixture(self, description: str, sample: int, table: torch.Tensor) -> torch.Tensor:
        """As many pseudo-words as an encoder has, each a random mixture of the words of a description: (L, D)."""
        ids = self.tokenizer(description, add_special_tokens=False).input_ids
        rng = sample_rng(self.seed, sample, "mixture")
        weights = torch.tensor([_shares(rng, len(ids)) for _ in range(self.record_encoder.num_words)])
        return mixed(weights.to(table), table[ids])

    def on_train_end(self) -> None:
        """Write the U-Net, its scheduler, and the record encoder, which may teach an image encoder."""
        if self.trainer.is_global_zero:
            state = {name: value.clone() for name, value in self.record_encoder.state_dict().items()}
            folder = Path(self.base_dir) / "record_encoder"
            folder.mkdir(parents=True, exist_ok=True)
            save_file(state, folder / "model.safetensors")
        super().on_train_end()


def _shares(rng: random.Random, number: int) -> list[float]:
    """Draw `number` shares from a Dirichlet distribution of concentration 1/2."""
    values = [rng.gammavariate(0.5, 1.0) + 1e-6 for _ in range(number)]
    return [value / sum(values) for value in values]
