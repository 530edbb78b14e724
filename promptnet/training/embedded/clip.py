"""Stage 2 of the embedded model: tokenizer, text and image encoder, trained together as CLIP (arXiv 2103.00020).

The contrastive loss alone leaves the image encoder blind to small things (a mouth is four pixels wide), so linear heads
read the record's fields from both encoders while they train; the heads are thrown away.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPVisionModel

from promptnet.datasets.avatars.captions import mentioned, random_caption
from promptnet.datasets.avatars.module import codes_of
from promptnet.datasets.avatars.render import FIELDS, sample_avatar
from promptnet.models.judge import FieldHeads
from promptnet.models.tiny import (
    TEXT_WIDTH,
    VISION_WIDTH,
    build_clip,
    build_image_processor,
    copy_encoder,
    save_projections,
    train_tokenizer,
)
from promptnet.training.stage import Stage, save_half


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy of matching rows; `image` and `text` are (B, D), any length (CLIP, figure 3)."""
    logits = logit_scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ClipStage(Stage):
    """Contrastive pretraining of the two encoders on avatars and their captions.

    Args:
        heads_weight: of the fields' cross-entropy, for each encoder, beside the contrastive loss.
        tokenizer_captions: captions the tokenizer is trained on.
        seed: of those captions.
        export_dir: folder of the diffusers model; tokenizer and encoders are written there when training ends.
    """

    def __init__(
        self,
        heads_weight: float = 1.0,
        tokenizer_captions: int = 20000,
        seed: int = 0,
        export_dir: str = "checkpoints/tiny",
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.save_hyperparameters()
        self.heads_weight, self.export_dir = heads_weight, export_dir
        self.tokenizer = train_tokenizer(self.captions(seed, tokenizer_captions))
        self.clip = build_clip(self.tokenizer)
        self.vision_heads, self.text_heads = FieldHeads(VISION_WIDTH, self.fields), FieldHeads(TEXT_WIDTH, self.fields)

    fields = FIELDS
    """What the heads read, with all values."""

    @staticmethod
    def captions(seed: int, number: int) -> list[str]:
        """Return what the tokenizer is trained on."""
        return _captions(seed, number)

    def _features(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Contrastive embeddings of both encoders, and what the heads read: mean patch state, end-of-text state."""
        ids = self.tokenizer(batch["caption"], padding="longest", truncation=True, return_tensors="pt")["input_ids"]
        vision = self.clip.vision_model(pixel_values=batch["pixels"])
        text = self.clip.text_model(input_ids=ids.to(batch["pixels"].device))
        image_embedding = self.clip.visual_projection(vision.pooler_output)
        text_embedding = self.clip.text_projection(text.pooler_output)
        return image_embedding, text_embedding, vision.last_hidden_state[:, 1:].mean(1), text.pooler_output

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        image, text, vision_state, text_state = self._features(batch)
        contrast = contrastive_loss(image, text, self.clip.logit_scale.exp().clamp(max=100))
        said = torch.stack([codes_of(mentioned(caption)) for caption in batch["caption"]]).to(image.device)
        heads = self.vision_heads.loss(vision_state, batch["codes"]) + self.text_heads.loss(text_state, said)
        self.log_dict({"train/contrast": contrast, "train/heads": heads}, prog_bar=True)
        return contrast + self.heads_weight * heads

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Top-1 retrieval within the batch and the vision heads' accuracy a field, on unseen people."""
        image, text, vision_state, _ = self._features(batch)
        nearest = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
        hits = (nearest == torch.arange(len(image), device=image.device)).float().mean()
        self.log("val/top1", hits, prog_bar=True)
        accuracies = self.vision_heads.accuracies(vision_state, batch["codes"])
        self.log_dict({f"val/{field}": value for field, value in accuracies.items()})
        self.log("val/fields", torch.stack(list(accuracies.values())).mean(), prog_bar=True)

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


def _captions(seed: int, number: int) -> list[str]:
    rng = random.Random(seed)
    avatars = (sample_avatar(seed, index) for index in range(number))
    return [random_caption(avatar.identity, avatar.attributes, rng=rng) for avatar in avatars]
