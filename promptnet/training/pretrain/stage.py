"""Pretraining the encoder: the base model's own denoising loss and nothing else (arXiv 2305.13579, section 3.1)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModel

from promptnet.datasets.avatars.latents import AvatarLatents
from promptnet.datasets.faces.features import network_hash
from promptnet.datasets.stream import sample_noise
from promptnet.inference.pipeline import PromptNetPipeline
from promptnet.inference.sampling.arguments import check_text_layer, check_vision, check_words
from promptnet.inference.sampling.conditions import strided
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.schedule import prediction_type
from promptnet.inference.tuning.config import TuningConfig
from promptnet.models.base_model import VisionInput, forces_zeros, load_base
from promptnet.models.micro_conditioning import micro_conditions
from promptnet.models.placeholders import find_placeholders
from promptnet.models.prompt_tokens import Padding
from promptnet.models.promptnet import PromptNetModel
from promptnet.models.text import Positions
from promptnet.models.text_encoders import mean_word_norm
from promptnet.training.diffusion_stage import DiffusionStage, min_snr_weights
from promptnet.training.pretrain.features import fill_together
from promptnet.training.pretrain.precision import frozen_dtype, place_frozen
from promptnet.training.stage import Stage, save_half

__all__ = ["PretrainStage", "mean_word_norm", "write_index"]


_PIXELS_TOGETHER = 2**20  # one image of 1024 px or four of 512 px: encoding is not to need more memory than training


class PretrainStage(DiffusionStage):
    """Trains PromptNet alone: S* from the reference image, noise predicted in the target image, mean squared error.

    The U-Net, the text encoders, the image encoder and the VAE stay as they are; gradients pass through U-Net and text
    encoders into the pseudo-words. Under mixed precision they are kept in the low precision (the VAE excepted), and the
    encoder's weights in float32.

    Args:
        base_dir: diffusers folder or hub id of the base model: SD 1.x, SD 2.x or SDXL.
        export_dir: folder the encoder is written to when training ends.
        start_from: folder of an encoder to go on from (its weights); None starts from the U-Net's trunk.
        region_kernel_size: R; (H / 8 R)(W / 8 R) pseudo-words from latents H x W.
        region_proj_channel: channels of each head's projection.
        keep_word_norm: hold pseudo-words at the mean norm of the encoder's words (times one learned gain).
        use_res: with the published residual heads (they get no gradient).
        with_noise: whether the encoder looks at x_t. If not, the words depend on t alone, and a drawing makes them all
            at once. None: as `start_from` does, and a new encoder looks.
        sampling: parameters of `SamplingConfig` that the finished pipeline draws with unless a call says otherwise.
        tuning: the same for `TuningConfig`.
        seed: of noise and timesteps.
        vision_id: folder or hub id of the CLIP image encoder; None takes the base's own `image_encoder`.
        gradient_checkpointing: recompute the U-Net's, the encoder's and the text encoders' activations in the backward
            pass in place of keeping them: a third more work for a fraction of the memory.
        min_snr_gamma: weight errors by min(SNR, gamma) (arXiv 2303.09556; published 5); None as ProFusion, all alike.
        sample_posterior: draw the target's latents from the VAE's posterior in place of taking its mode.
        sample_reference: the same for the reference's, from noise of its own; published with `sample_posterior`.
        word_positions: position embeddings of pseudo-words, "natural" or "published" (promptnet.models.text); draw with
            the same (`sampling`).
        prompt_padding: "max_length" as in drawing, or "longest" as the published training had it.
        described_weight: weight of a second error: against the base model's own prediction under the caption that
            describes the person in words (`described` of the batch, which data modules with full records have). 0 as
            ProFusion: noise is all that is learned from.
        compile_backend: compile the transformer blocks of U-Net and encoder, for example with "inductor".
    """

    def __init__(
        self,
        base_dir: str = "checkpoints/tiny",
        export_dir: str = "checkpoints/tiny/promptnet",
        start_from: str | None = None,
        region_kernel_size: int = 2,
        region_proj_channel: int = 128,
        keep_word_norm: bool = True,
        use_res: bool = False,
        with_noise: bool | None = None,
        sampling: dict[str, Any] | None = None,
        tuning: dict[str, Any] | None = None,
        seed: int = 0,
        vision_id: str | None = None,
        gradient_checkpointing: bool = False,
        min_snr_gamma: float | None = None,
        sample_posterior: bool = False,
        sample_reference: bool = False,
        compile_backend: str | None = None,
        word_positions: Positions = "natural",
        prompt_padding: Padding = "max_length",
        described_weight: float = 0.0,
        **stage: Any,
    ) -> None:
        SamplingConfig().replaced(sampling or {})
        TuningConfig().replaced(tuning or {})
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ValueError(f"min_snr_gamma={min_snr_gamma} must be above 0 (published 5), or null for equal weights")
        if described_weight < 0:
            raise ValueError(f"described_weight={described_weight} must be at least 0")
        base = load_base(base_dir, vision_id)
        texts = base.text_encoders()
        check_text_layer(None, [encoder.network.config for encoder in texts.text_encoders])
        super().__init__(base.networks, base.scheduler, seed, **stage)
        self.save_hyperparameters()
        self.export_dir = Path(export_dir)
        self.tokenizer, self.text_encoders = base.tokenizers[0], texts
        self.word_positions: Positions = word_positions
        self.prompt_padding: Padding = prompt_padding
        self.image_processor, self.forces_zeros = base.image_processor, base.forces_zeros
        self.vision_input = VisionInput.of(base.image_processor, self.frozen["image_encoder"])
        self.min_snr_gamma = min_snr_gamma
        self.sample_posterior, self.sample_reference = sample_posterior, sample_reference
        self.described_weight = described_weight
        self.gradient_checkpointing, self.compile_backend = gradient_checkpointing, compile_backend
        self.promptnet = self._encoder(
            start_from, region_kernel_size, region_proj_channel, keep_word_norm, use_res, with_noise
        )
        if gradient_checkpointing:
            self.promptnet.enable_gradient_checkpointing()
            self.frozen["unet"].enable_gradient_checkpointing()

    def _encoder(
        self,
        start_from: str | None,
        region_kernel_size: int,
        region_proj_channel: int,
        keep_word_norm: bool,
        use_res: bool,
        with_noise: bool | None,
    ) -> PromptNetModel:
        if start_from:
            started: Any = PromptNetModel.from_pretrained(start_from)
            if with_noise is not None:  # the layers are the same, only what they are fed differs
                started.with_noise = with_noise
                started.register_to_config(with_noise=with_noise)
            check_words(started.config["prompt_channel"], self.text_encoders)
            check_vision(started.config, self.frozen["image_encoder"].config, self.frozen["vae"].config)
            return started.float()
        unet = self.frozen["unet"]
        with torch.device(unet.device):
            return PromptNetModel.from_unet(
                unet,
                vision_dim=self.frozen["image_encoder"].config.hidden_size,
                prompt_channel=self.text_encoders.width,
                region_proj_channel=region_proj_channel,
                region_kernel_size=region_kernel_size,
                use_res=use_res,
                with_noise=with_noise is not False,
                word_norm=self.text_encoders.word_norm() if keep_word_norm else None,
            )

    # --- where the frozen networks are, and what they compute once ----------------------------------------------

    def setup(self, stage: str) -> None:
        """Open the latents of targets and references where the data module renders them.

        Other sets are encoded in `on_fit_start`.
        """
        if not self._renders():
            return Stage.setup(self, stage)
        super().setup(stage)
        module: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        vae = self.frozen["vae"]
        self.reference_latents: dict[str, Any] = {
            split: AvatarLatents(module.references(split), vae) for split in ("train", "validation")
        }

    def _renders(self) -> bool:
        return hasattr(self.trainer.datamodule, "rendered")  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """Move the frozen parts to where this one is by now, compile, and compute what the data module wants kept."""
        place_frozen(self.frozen, frozen_dtype(str(self.trainer.precision)), self.device)
        self.alphas = self.scheduler.alphas_cumprod.to(self.device, torch.float32)  # strategies may have rounded it
        self._check_export()
        self._check_prompts()
        self.compile_blocks()
        self._fill_caches()

    def _check_export(self) -> None:
        """Refuse, before the first step, a folder that the encoder cannot be written to after the last."""
        try:
            self.export_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.export_dir):
                pass
        except OSError as error:
            raise ValueError(f"export_dir '{self.export_dir}' cannot be written to: {error.strerror}") from error

    def _check_prompts(self) -> None:
        """Refuse, before the first step, prompts in which the pseudo-words would be cut off."""
        module: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(module, "resolution_px"):
            return
        side = module.resolution_px // 2 ** (len(self.frozen["vae"].config.block_out_channels) - 1)
        num_words = self.promptnet.num_pseudo_words(side, side)
        for pairs in (module.train, module.validation):
            if pairs is None:
                continue
            self._check_room("neutral_prompt", pairs.prompts.neutral, num_words)
            for row, prompt in pairs.captioned_prompts():
                self._check_room(lambda pairs=pairs, row=row: pairs.store.name(row), prompt, num_words)

    def _check_room(self, name: str | Callable[[], str], prompt: str, num_words: int) -> None:
        places = len(find_placeholders(prompt))
        room = (
            min(text_encoder.max_length for text_encoder in self.text_encoders.text_encoders) - 2 - places * num_words
        )
        before = prompt.rpartition("S*")[0]
        if len(before.encode()) <= room:  # no token is shorter than a byte
            return
        try:
            self.text_encoders.tokenize([f"{before}S*"], [{"S*": num_words}])
        except ValueError as error:
            raise ValueError(f"{name if isinstance(name, str) else name()}: {error}") from error

    def compile_blocks(self) -> None:
        """Compile the transformer blocks, if that is asked for; the names of the weights stay."""
        if self.compile_backend is not None:
            for network in (self.promptnet, self.frozen["unet"]):
                network.compile_repeated_blocks(backend=self.compile_backend)

    def _fill_caches(self) -> None:
        """Compute the features that the data module wants and has not."""
        trainer: Any = self.trainer
        wanted = getattr(trainer.datamodule, "features", [])
        if not wanted:
            return
        hashes = {
            "latents": network_hash(self.frozen["vae"]),
            "vision": f"{network_hash(self.frozen['image_encoder'])} {self.vision_input}",
        }
        for cache, pixels in trainer.datamodule.caches({name: hashes[name] for name in wanted}):
            encode = self._encode_vision if cache.kind == "vision" else self._encode_moments
            fill_together(trainer, cache, pixels, encode)

    @torch.no_grad()
    def _encode_moments(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """The posterior's mean and log-variance (2 C, h, w) of images that need not have one size."""
        if len({image.shape for image in images}) > 1:
            return [self._encode_moments([image])[0] for image in images]
        together = max(1, _PIXELS_TOGETHER // (images[0].shape[1] * images[0].shape[2]))
        parts = torch.stack(images).split(together)
        return [moments for part in parts for moments in self._moments(part.to(self.device))]

    @torch.no_grad()
    def _encode_vision(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(self._vision_states(torch.stack(images).to(self.device)))

    # --- one batch ----------------------------------------------------------------------------------------------

    def _moments(self, pixels: torch.Tensor) -> torch.Tensor:
        """The VAE's mean and log-variance (B, 2 C, h, w), unscaled, always computed in float32."""
        vae = self.frozen["vae"]
        device = "cpu" if pixels.is_meta else pixels.device.type  # shapes alone know no autocast
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return vae.encode(pixels.to(vae.dtype)).latent_dist.parameters

    def _vision_states(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, T, V) of reference images (B, 3, S, S) in [-1, 1]."""
        text_encoder = self.frozen["image_encoder"]
        with torch.no_grad():
            return text_encoder(pixel_values=self.vision_input(pixels).to(text_encoder.dtype)).last_hidden_state

    def _latents(self, batch: dict[str, Any], role: str, split: str) -> torch.Tensor:
        """Scaled latents (B, C, h, w) of the batch's "reference" or "target" images."""
        if f"{role}_index" in batch:
            if self.sample_posterior or self.sample_reference:
                raise ValueError(
                    "sample_posterior and sample_reference need the posterior, and rendered avatars keep its mode "
                    "alone: set them to false, or use promptnet.datasets.faces.module.FaceDataModule"
                )
            if role == "target":
                return self.cached(split, batch["target_index"])
            found = self.reference_latents[split][batch["reference_index"].cpu()]
            return found.to(self.device, memory_format=torch.channels_last)
        moments = batch[f"{role}_moments"] if f"{role}_moments" in batch else self._moments(batch[f"{role}_pixels"])
        mean, log_variance = moments.float().chunk(2, dim=1)
        if split == "train" and (self.sample_posterior if role == "target" else self.sample_reference):
            purpose = "posterior" if role == "target" else "posterior of the reference"
            noise = sample_noise(self.seed, batch["sample"].cpu(), purpose, tuple(mean.shape[1:]))
            mean = mean + (log_variance.clamp(-30, 20) / 2).exp() * noise.to(mean)
        config = self.frozen["vae"].config
        latents = (mean - (config.shift_factor or 0.0)) * config.scaling_factor
        return latents.contiguous(memory_format=torch.channels_last)

    def _pair(self, batch: dict[str, Any], split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of reference and target; a batch without targets has one image for both."""
        reference = self._latents(batch, "reference", split)
        shared = not any(f"target_{kind}" in batch for kind in ("index", "moments", "pixels"))
        if not shared:
            return reference, self._latents(batch, "target", split)
        if not (self.sample_posterior or self.sample_reference):
            return reference, reference
        as_target = {key.replace("reference", "target"): value for key, value in batch.items()}
        return reference, self._latents(as_target, "target", split)

    def _conditions(self, batch: dict[str, Any], words: torch.Tensor | None) -> dict[str, Any]:
        """The U-Net's keyword arguments for prompts with these pseudo-words (B, L, D), or for the described ones."""
        prompts = batch["described" if words is None else "prompt"]
        if words is not None:
            _check_mentioned(prompts)
        if self.gradient_checkpointing and words is not None and words.requires_grad:
            encoded: Any = recompute(self.encode_prompts, prompts, words, use_reentrant=False)
            states, pooled = encoded
        else:
            states, pooled = self.encode_prompts(prompts, words)
        dtype = self.frozen["unet"].dtype
        conditions: dict[str, Any] = {"encoder_hidden_states": states.to(dtype)}
        if pooled is not None:
            conditions |= micro_conditions(pooled, self._size_ids(batch), dtype)
        return conditions

    def encode_prompts(
        self, prompts: Sequence[str], words: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The text encoders' states (B, T, D) and SDXL's pooled state (B, P) of prompts that mention S*, or do not.

        Args:
            prompts: B prompts.
            words: (B, L, D), the pseudo-words; None where no prompt mentions S*.
        """
        named = None if words is None else [{"S*": row} for row in words]
        states = self.text_encoders.encode(prompts, named, positions=self.word_positions, padding=self.prompt_padding)
        return states.hidden_states, states.pooled

    def _size_ids(self, batch: dict[str, Any]) -> torch.Tensor:
        """SDXL's numbers (B, 6) on the target's size and crop (arXiv 2307.01952, section 2.2)."""
        if "size_ids" not in batch:
            raise ValueError(
                "SDXL needs each image's size and crop: use promptnet.datasets.faces.module.FaceDataModule."
            )
        return batch["size_ids"]

    def _reference_vision(self, batch: dict[str, Any]) -> torch.Tensor:
        """(B, T, V) of the batch's reference images, precomputed or not."""
        cached = "reference_vision" in batch
        return batch["reference_vision"] if cached else self._vision_states(batch["reference_pixels"])

    def loss(self, batch: dict[str, Any], split: str) -> torch.Tensor:
        """The error of one batch of "train" or "validation"."""
        reference, target = self._pair(batch, split)
        vision = self._reference_vision(batch)
        unet, dtype = self.frozen["unet"], self.promptnet.dtype

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            seen = strided(noisy, *reference.shape[2:]).to(dtype)
            words = self.promptnet(reference.to(dtype), timesteps, vision.to(dtype), noisy_latents=seen).pseudo_words
            output = unet(noisy.to(unet.dtype), timesteps, **self._conditions(batch, words)).sample
            if split == "train" and self.described_weight:
                errors.append(F.mse_loss(output, self._described(batch, noisy, timesteps)))
            return output.to(noisy.dtype)

        errors: list[torch.Tensor] = []
        loss = self.denoising_loss(predict, target, batch["sample"])
        if not errors:
            return loss
        self.log("train/described", errors[0], batch_size=len(batch["prompt"]))
        return loss + self.described_weight * errors[0]

    @torch.no_grad()
    def _described(self, batch: dict[str, Any], noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the base model predicts when the person is described in words."""
        if "described" not in batch:
            raise ValueError(
                f"described_weight={self.described_weight} needs captions that describe the person, which this data "
                "has not: set it to 0, or train on avatars (promptnet.datasets.avatars.module.PairDataModule)."
            )
        unet = self.frozen["unet"]
        return unet(noisy.to(unet.dtype), timesteps, **self._conditions(batch, None)).sample

    def sample_weights(self, alphas: torch.Tensor) -> torch.Tensor | None:
        """Min-SNR's in training, where that is asked for."""
        if self.min_snr_gamma is None or not self.training:
            return None
        return min_snr_weights(alphas, self.min_snr_gamma, prediction_type(self.scheduler))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        loss = self.loss(batch, "train")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["prompt"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss with fixed noise on people never seen in training."""
        self.log("val/loss", self.loss(batch, "validation"), prog_bar=True, batch_size=len(batch["prompt"]))

    def on_train_end(self) -> None:
        """Write the encoder; if its place is in the base model's folder, that folder is a PromptNetPipeline now."""
        state = self._encoder_state()  # every rank has its part in this
        if not self.trainer.is_global_zero:
            return
        encoder: Any = PromptNetModel.from_config(self.promptnet.config)  # a copy: this one may be saved or go on
        encoder.load_state_dict(state)
        save_half(encoder, self.export_dir)
        folder = Path(self.hparams["base_dir"])
        if self.export_dir == folder / "promptnet":
            write_index(folder, self.hparams["sampling"], self.hparams["tuning"])

    def _encoder_state(self) -> dict[str, Any]:
        """The encoder's weights, on the first rank, also where they lie in parts on several devices (FSDP)."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
            return self.promptnet.state_dict()
        assert strategy.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state, prefix = get_model_state_dict(strategy.model, options=options), "promptnet."
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _check_mentioned(prompts: Sequence[str]) -> None:
    """Refuse a sample that would train without its pseudo-words: beside others it would go unnoticed."""
    for prompt in prompts:
        if "S*" not in find_placeholders(prompt):
            raise ValueError(f"The prompt {prompt!r} has no S* in it, so its sample would learn nothing.")


def write_index(folder: Path, sampling: dict[str, Any] | None, tuning: dict[str, Any] | None) -> None:
    """Write `model_index.json` beside a pipeline's parts, with the parameters that were measured for it."""
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "image_encoder": CLIPVisionModel.from_pretrained(folder / "image_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "feature_extractor": CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
        "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler"),
        "promptnet": PromptNetModel.from_pretrained(folder / "promptnet"),
    }
    if parts["unet"].config.addition_embed_type is not None:  # SDXL
        parts["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
        parts["force_zeros_for_empty_prompt"] = forces_zeros(folder)
    PromptNetPipeline(**parts, sampling=sampling, tuning=tuning).save_config(folder)
