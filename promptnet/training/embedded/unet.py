"""Stage 3 of the embedded model: a U-Net that reads words, words between words, and people as pseudo-words.

Encoders speak to the base model in pseudo-words, which lie between the words of its vocabulary. A base model that was
trained on words alone reads mixtures badly, so this one sees four kinds of prompts, and empty ones for classifier-free
guidance:

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
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from promptnet.datasets.avatars.person import FIELDS
from promptnet.datasets.stream import sample_rng
from promptnet.models.judge import AvatarJudge
from promptnet.models.text import encode_prompts
from promptnet.models.text_encoders import mean_word_norm
from promptnet.models.tiny import build_scheduler, build_unet
from promptnet.training.diffusion_stage import DiffusionStage
from promptnet.training.embedded.soft_words import RecordEncoder, SoftWords, mixed, perturbed
from promptnet.training.stage import channels_last, save_half

_KINDS = ("empty", "plain", "soft", "record", "mixture")


class BaseModelStage(DiffusionStage):
    """Text-to-image diffusion on cached latents of `AvatarDataModule`.

    Args:
        base_dir: diffusers folder with the trained VAE, tokenizer and text encoder; the U-Net and the record encoder
            are written there.
        judge_dir: validation judge; where it is missing, validation logs the losses only.
        channels: of the U-Net's three levels.
        start_from: folder of a U-Net to go on from (its weights, not its optimiser); None starts anew.
        shares: probability of each kind of prompt: empty, plain, soft, record, mixture.
        noise: expected norm of the perturbation of soft and pseudo-words, as a share of the words' mean norm.
        seed: of noise, timesteps and prompts.
        num_generated: validation images drawn and judged.
        guidance_scale: of those.
    """

    def __init__(
        self,
        base_dir: str = "checkpoints/tiny",
        judge_dir: str = "checkpoints/judges/validation",
        channels: tuple[int, int, int] = (64, 128, 192),
        start_from: str | None = None,
        shares: tuple[float, float, float, float, float] = (0.1, 0.3, 0.15, 0.35, 0.1),
        noise: float = 0.15,
        seed: int = 0,
        num_generated: int = 64,
        guidance_scale: float = 3.0,
        **stage: Any,
    ) -> None:
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares={shares} must be probabilities of {', '.join(_KINDS)} that sum to one")
        self.base_dir, self.judge_dir = Path(base_dir), Path(judge_dir)
        frozen: dict[str, Any] = {
            "vae": AutoencoderKL.from_pretrained(self.base_dir / "vae"),
            "text_encoder": CLIPTextModel.from_pretrained(self.base_dir / "text_encoder"),
        }
        if self.judge_dir.exists():
            frozen["judge"] = AvatarJudge.from_pretrained(self.judge_dir)
        super().__init__(frozen, build_scheduler(), seed, **stage)
        self.save_hyperparameters()
        self.shares, self.num_generated, self.guidance_scale = shares, num_generated, guidance_scale
        self.tokenizer = CLIPTokenizer.from_pretrained(self.base_dir / "tokenizer")
        unet: Any = UNet2DConditionModel.from_pretrained(start_from) if start_from else build_unet(channels)
        self.unet = channels_last(unet.float())
        text_encoder = self.frozen["text_encoder"]
        self.word_norm = mean_word_norm(text_encoder)
        self.noise = noise * self.word_norm
        self.soft_words = SoftWords(self.tokenizer)
        self.record_encoder = RecordEncoder(text_encoder.config.hidden_size, self.word_norm)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        kinds = [self._kind(int(sample)) for sample in batch["sample"]]
        loss = self._loss(batch, "train", kinds)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(kinds))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss with fixed noise on unseen people, by kind of prompt, and what the judge reads in generated images."""
        size = len(batch["index"])
        for kind in ("plain", "soft", "record"):
            loss = self._loss(batch, "validation", [kind] * size)
            self.log("val/loss" if kind == "plain" else f"val/loss_{kind}", loss, prog_bar=True, batch_size=size)
        if batch_idx * size < self.num_generated and "judge" in self.frozen:
            self._judge(batch, batch_idx)

    def _judge(self, batch: dict[str, Any], batch_idx: int) -> None:
        read = self.frozen["judge"](self._draw(batch["caption"], seed=batch_idx))
        for place, field in enumerate(FIELDS):
            hits = (read[field].argmax(1) == batch["codes"][:, place]).float().mean()
            self.log(f"judge/{field}", hits, batch_size=len(batch["index"]))

    # --- prompts --------------------------------------------------------------------------------------------------

    def _kind(self, sample: int) -> str:
        return sample_rng(self.seed, sample, "kind").choices(_KINDS, self.shares)[0]

    def _loss(self, batch: dict[str, Any], split: str, kinds: list[str]) -> torch.Tensor:
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

    # --- what it draws, and writes --------------------------------------------------------------------------------

    def _draw(self, captions: list[str], seed: int) -> torch.Tensor:
        """Images (B, 3, 64, 64) in [-1, 1] for captions."""
        pipe = StableDiffusionPipeline(
            unet=self.unet,
            scheduler=build_scheduler(),  # type: ignore[arg-type]
            vae=self.frozen["vae"],
            text_encoder=self.frozen["text_encoder"],
            tokenizer=self.tokenizer,
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(seed)
        generated = pipe(
            captions, num_inference_steps=12, guidance_scale=self.guidance_scale, generator=generator, output_type="pt"
        )
        return generated.images * 2 - 1  # type: ignore[union-attr]

    def on_train_end(self) -> None:
        """Write the U-Net, its scheduler, and the record encoder, which may teach an image encoder."""
        if not self.trainer.is_global_zero:
            return
        save_half(self.unet, self.base_dir / "unet")
        self.scheduler.save_pretrained(self.base_dir / "scheduler")
        state = {name: value.clone() for name, value in self.record_encoder.state_dict().items()}
        folder = self.base_dir / "record_encoder"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "model.safetensors")


def _shares(rng: random.Random, number: int) -> list[float]:
    """Draw `number` shares from a Dirichlet distribution of concentration 1/2."""
    values = [rng.gammavariate(0.5, 1.0) + 1e-6 for _ in range(number)]
    return [value / sum(values) for value in values]
