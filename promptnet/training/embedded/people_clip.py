"""Stage 2 on people without end: CLIP whose text encoder reads exact colours as words between words."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from promptnet.datasets.avatars.captions import caption, random_fields
from promptnet.datasets.avatars.person import COLOR_FIELDS, FIELDS, sample_avatar
from promptnet.datasets.avatars.vectors import NUM_EXACT
from promptnet.datasets.stream import sample_rng
from promptnet.models.prompt_tokens import tokenize_prompts
from promptnet.models.text import encode_tokens
from promptnet.models.tiny import MAX_TOKENS, TEXT_WIDTH, VISION_WIDTH
from promptnet.training.embedded.clip import ClipStage, contrastive_loss
from promptnet.training.embedded.soft_words import SoftWords, perturbed


class PeopleClipStage(ClipStage):
    """`ClipStage` in which some captions name exact colours by soft words, and heads read what no word says.

    Args:
        soft: probability that a caption's colour words are soft.
        noise: standard deviation of a perturbation of all soft words, as a share of the words' mean norm.
        clip: arguments of `ClipStage`.
    """

    fields = FIELDS

    def __init__(self, soft: float = 0.5, noise: float = 0.1, **clip: Any) -> None:
        super().__init__(**clip)
        self.save_hyperparameters()
        self.soft, self.noise = soft, noise
        self.soft_words = SoftWords(self.tokenizer)
        self.vision_exact, self.text_exact = nn.Linear(VISION_WIDTH, NUM_EXACT), nn.Linear(TEXT_WIDTH, NUM_EXACT)

    @staticmethod
    def captions(seed: int, number: int) -> list[str]:
        """Return what the tokenizer is trained on."""
        rng = random.Random(seed)
        records = (sample_avatar(seed, index).record() for index in range(number))
        return [caption(record, fields=random_fields(rng), rng=rng) for record in records]

    def _text(self, batch: dict[str, Any], split: str) -> torch.Tensor:
        """The end-of-text state (B, D) of each caption."""
        table = self._words()
        generated = [sample_rng(0, int(k), "soft").random() < self.soft and split == "train" for k in batch["sample"]]
        prompts, words = self.soft_words.of(batch["caption"], batch["color_weights"], table, generated)
        if split == "train":
            words = perturbed(words, batch["sample"], self.noise * float(table.detach().norm(dim=1).mean()))
        counts = [dict.fromkeys(given, 1) for given in words]
        tokens = tokenize_prompts(self.tokenizer, prompts, counts, max_length=MAX_TOKENS, padding="longest")
        states = encode_tokens(self.clip.text_model, tokens, words).hidden_states  # type: ignore[arg-type]
        ends = tokens.attention_mask.sum(1) - 1
        return states[torch.arange(len(states)), ends.to(states.device)]

    def _words(self) -> torch.Tensor:
        text_encoder: Any = self.clip.text_model
        return getattr(text_encoder, "embeddings", None).token_embedding.weight  # type: ignore[union-attr]

    def _read(self, batch: dict[str, Any], split: str) -> tuple[torch.Tensor, ...]:
        """Contrastive embeddings of both encoders, mean patch state, end-of-text state."""
        vision = self.clip.vision_model(pixel_values=batch["pixels"])
        text = self._text(batch, split)
        image_embedding = self.clip.visual_projection(vision.pooler_output)
        return image_embedding, self.clip.text_projection(text), vision.last_hidden_state[:, 1:].mean(1), text

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        image, text, vision_state, text_state = self._read(batch, "train")
        contrast = contrastive_loss(image, text, self.clip.logit_scale.exp().clamp(max=100))
        heads = self.vision_heads.loss(vision_state, batch["codes"]) + self.text_heads.loss(text_state, batch["said"])
        exact = F.smooth_l1_loss(self.vision_exact(vision_state), batch["exact"], beta=0.1)
        said = _said_colors(batch["said"]).to(image)
        read = F.smooth_l1_loss(self.text_exact(text_state), batch["exact"], beta=0.1, reduction="none")
        exact = exact + (read * said).sum() / said.sum().clamp_min(1)
        self.log_dict({"train/contrast": contrast, "train/heads": heads, "train/exact": exact}, prog_bar=True)
        return contrast + self.heads_weight * (heads + exact)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Top-1 retrieval within the batch, what the vision heads read, and errors of exact colours in CIELAB units."""
        image, text, vision_state, _ = self._read(batch, "validation")
        nearest = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
        hits = (nearest == torch.arange(len(image), device=image.device)).float().mean()
        accuracies = self.vision_heads.accuracies(vision_state, batch["codes"])
        read = self.vision_exact(vision_state) - batch["exact"]
        errors = {
            f"val/error_{field}": 50 * read[:, 3 * place : 3 * place + 3].norm(dim=1).mean()
            for place, field in enumerate(COLOR_FIELDS)
        }
        geometry = read[:, 3 * len(COLOR_FIELDS) :].abs().mean()
        figures = {f"val/{field}": value for field, value in accuracies.items()} | errors
        figures |= {
            "val/top1": hits,
            "val/geometry": geometry,
            "val/fields": torch.stack(list(accuracies.values())).mean(),
        }
        self.log_dict(figures, batch_size=len(image))


def _said_colors(said: torch.Tensor) -> torch.Tensor:
    """Which of the exact numbers (B, 19) the caption speaks of: the colours that it names."""
    places = [list(FIELDS).index(field) for field in COLOR_FIELDS]
    named = (said[:, places] >= 0).float().repeat_interleave(3, dim=1)  # (B, 12)
    return F.pad(named, (0, NUM_EXACT - named.shape[1]))
