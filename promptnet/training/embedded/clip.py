"""Stage 2 of the embedded model: tokenizer, text and image encoder, trained together as CLIP (arXiv 2103.00020).

The contrastive loss alone leaves the image encoder blind to small things (a mouth is four pixels wide), so linear heads
read the record's fields from both encoders while they train, and what no word says (exact colours, geometry); the heads
are thrown away. The text encoder reads exact colours as words between words (`SoftWords`).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPVisionModel

from promptnet.datasets.avatars.captions import caption, random_fields
from promptnet.datasets.avatars.person import COLOR_FIELDS, FIELDS, sample_avatar
from promptnet.datasets.avatars.vectors import NUM_EXACT
from promptnet.datasets.stream import sample_rng
from promptnet.models.judge import FieldHeads
from promptnet.models.prompt_tokens import tokenize_prompts
from promptnet.models.text import encode_tokens
from promptnet.models.tiny import (
    MAX_TOKENS,
    TEXT_WIDTH,
    VISION_WIDTH,
    build_clip,
    build_image_processor,
    copy_encoder,
    save_projections,
    train_tokenizer,
)
from promptnet.training.embedded.soft_words import SoftWords, perturbed
from promptnet.training.stage import Stage, save_half

_NUM_COLORS = 3 * len(COLOR_FIELDS)  # of `exact`, the first ones


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy of matching rows; `image` and `text` are (B, D), any length (CLIP, figure 3)."""
    logits = logit_scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sampled_captions(seed: int, number: int) -> list[str]:
    """Return captions of avatars of the stream, each with fields drawn for it: what a tokenizer is trained on."""
    rng = random.Random(seed)
    records = (sample_avatar(seed, index).record() for index in range(number))
    return [caption(record, fields=random_fields(rng), rng=rng) for record in records]


class ClipStage(Stage):
    """Contrastive pretraining of the two encoders on avatars and their captions, some of which name exact colours.

    Args:
        heads_weight: of the heads' errors (cross-entropy of fields, distance of exact values), for each encoder, beside
            the contrastive loss.
        soft: probability that a caption's colour words are soft.
        noise: standard deviation of a perturbation of all soft words, as a share of the words' mean norm.
        tokenizer_captions: captions the tokenizer is trained on.
        seed: of those captions.
        export_dir: folder of the diffusers model; tokenizer and encoders are written there when training ends.
    """

    def __init__(
        self,
        heads_weight: float = 1.0,
        soft: float = 0.5,
        noise: float = 0.1,
        tokenizer_captions: int = 20000,
        seed: int = 0,
        export_dir: str = "checkpoints/tiny",
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.save_hyperparameters()
        self.heads_weight, self.soft, self.noise, self.export_dir = heads_weight, soft, noise, export_dir
        self.tokenizer = train_tokenizer(sampled_captions(seed, tokenizer_captions))
        self.clip = build_clip(self.tokenizer)
        self.vision_heads, self.text_heads = FieldHeads(VISION_WIDTH, FIELDS), FieldHeads(TEXT_WIDTH, FIELDS)
        self.soft_words = SoftWords(self.tokenizer)
        self.vision_exact, self.text_exact = nn.Linear(VISION_WIDTH, NUM_EXACT), nn.Linear(TEXT_WIDTH, NUM_EXACT)

    def _text(self, batch: dict[str, Any], split: str) -> torch.Tensor:
        """The end-of-text state (B, D) of each caption."""
        table = self._words()
        soft = [sample_rng(0, int(k), "soft").random() < self.soft and split == "train" for k in batch["sample"]]
        prompts, words = self.soft_words.of(batch["caption"], batch["color_weights"], table, soft)
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

    def _features(self, batch: dict[str, Any], split: str) -> tuple[torch.Tensor, ...]:
        """Contrastive embeddings of both encoders, and what the heads read: mean patch state, end-of-text state."""
        vision = self.clip.vision_model(pixel_values=batch["pixels"])
        text = self._text(batch, split)
        image_embedding = self.clip.visual_projection(vision.pooler_output)
        return image_embedding, self.clip.text_projection(text), vision.last_hidden_state[:, 1:].mean(1), text

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        image, text, vision_state, text_state = self._features(batch, "train")
        contrast = contrastive_loss(image, text, self.clip.logit_scale.exp().clamp(max=100))
        heads = self.vision_heads.loss(vision_state, batch["codes"]) + self.text_heads.loss(text_state, batch["said"])
        exact = self._exact_loss(batch, vision_state, text_state)
        self.log_dict({"train/contrast": contrast, "train/heads": heads, "train/exact": exact}, prog_bar=True)
        return contrast + self.heads_weight * (heads + exact)

    def _exact_loss(self, batch: dict[str, Any], vision_state: torch.Tensor, text_state: torch.Tensor) -> torch.Tensor:
        """The distance of exact values as read from images, and as read from captions that name their colour."""
        seen = F.smooth_l1_loss(self.vision_exact(vision_state), batch["exact"], beta=0.1)
        said = _said_colors(batch["said"]).to(text_state)
        read = F.smooth_l1_loss(self.text_exact(text_state), batch["exact"], beta=0.1, reduction="none")
        return seen + (read * said).sum() / said.sum().clamp_min(1)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Top-1 retrieval within the batch, what the vision heads read, and errors of exact colours in CIELAB units."""
        image, text, vision_state, _ = self._features(batch, "validation")
        nearest = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
        hits = (nearest == torch.arange(len(image), device=image.device)).float().mean()
        accuracies = self.vision_heads.accuracies(vision_state, batch["codes"])
        figures = {f"val/{field}": value for field, value in accuracies.items()}
        figures |= exact_errors(self.vision_exact(vision_state) - batch["exact"])
        self.log_dict(figures, batch_size=len(image))
        mean = torch.stack(list(accuracies.values())).mean()
        self.log_dict({"val/top1": hits, "val/fields": mean}, prog_bar=True, batch_size=len(image))

    def on_train_end(self) -> None:
        """Write tokenizer, encoders, feature extractor and the projections for `promptnet.models.tiny.load_clip`."""
        if not self.trainer.is_global_zero:
            return
        folder = Path(self.export_dir)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        build_image_processor().save_pretrained(folder / "feature_extractor")
        config: Any = self.clip.config
        text, vision = CLIPTextModel(config.text_config), CLIPVisionModel(config.vision_config)
        copy_encoder(self.clip.text_model, text)
        copy_encoder(self.clip.vision_model, vision)
        save_half(text, folder / "text_encoder")
        save_half(vision, folder / "image_encoder")
        save_projections(self.clip, folder)


def exact_errors(errors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what to log of errors (B, 19) of `vectors.exact_of`: of colours in CIELAB units, and of the geometry."""
    colors = errors[:, :_NUM_COLORS].unflatten(1, (-1, 3)).norm(dim=2).mean(0) * 50  # (4,)
    figures = {f"val/error_{field}": colors[place] for place, field in enumerate(COLOR_FIELDS)}
    return {**figures, "val/geometry": errors[:, _NUM_COLORS:].abs().mean()}


def _said_colors(said: torch.Tensor) -> torch.Tensor:
    """Which of the exact numbers (B, 19) the caption speaks of: the colours that it names."""
    places = [list(FIELDS).index(field) for field in COLOR_FIELDS]
    named = (said[:, places] >= 0).float().repeat_interleave(3, dim=1)  # (B, 12)
    return F.pad(named, (0, NUM_EXACT - _NUM_COLORS))
