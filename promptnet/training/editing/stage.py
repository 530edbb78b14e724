"""Learning an edit: a few dozen mixing weights, by gradient through every denoising step and the decoder.

Wu et al., arXiv 2212.08698. The published code keeps the whole graph; here each step's activations are recomputed in
the backward pass, which gives the same gradient with the memory of one step. One card is learned on many seeds or
images at once; with one seed it is the published setting.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from transformers import CLIPTokenizer

from promptnet.datasets.stream import sample_noise
from promptnet.images.crop import square, to_pixels
from promptnet.images.load import open_image
from promptnet.inference.editing.card import COMPONENTS, EditCard, start_weights
from promptnet.inference.editing.edit_image import default_prompt, image_guidance
from promptnet.inference.editing.inversion import Inversion, check_end, invert, joined, make_scheduler
from promptnet.inference.editing.rule import Mixing, check_lengths, check_request_lengths, text_directions
from promptnet.inference.editing.schedule_settings import schedule_settings
from promptnet.inference.references import decode_latents, encode_pixels
from promptnet.inference.sampling.checkpointing import checkpointed
from promptnet.inference.sampling.conditions import Networks, PlainPrompts
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance
from promptnet.inference.sampling.loop import Rule, sample
from promptnet.inference.sampling.requests import make_requests, moved
from promptnet.inference.sampling.schedule import prediction_type
from promptnet.inference.subject.fingerprint import hash_weights
from promptnet.models.text_encoders import TextEncoders
from promptnet.training.editing.base import (
    check_base,
    load_frozen,
    load_subjects,
    sampling_defaults,
    scheduler_config,
)
from promptnet.training.editing.losses import DirectionalClip, Edit, LossPart, VisionPerceptual
from promptnet.training.stage import restate


def sample_pixels(
    unet: Any, vae: Any, scheduler: Any, x: torch.Tensor, rules: Sequence[Rule], *, checkpoint: bool = True
) -> torch.Tensor:
    """Images (B, 3, H, W) in about [-1, 1], differentiable in everything that the rules hold.

    Args:
        unet: a diffusers U-Net.
        vae: the decoder.
        scheduler: its timesteps set anew; its step is not recomputed, as it has state.
        x: (B, C, h, w), starting latents in the scheduler's scale.
        rules: of the loop.
        checkpoint: keep the latents alone for the backward pass, and recompute one step at a time.
    """
    latents = sample(unet, scheduler, x, rules, checkpoint=checkpoint)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return decode_latents(vae, latents)

    return checkpointed(decode, latents) if checkpoint else decode(latents)


class EditStage(L.LightningModule):
    """Learns an edit card. The only parameters are its weights.

    Args:
        neutral: the prompt without the attribute.
        styled: the same prompt with it.
        out: the card to write when training ends; its folder must exist.
        base_dir: diffusers folder of the base model, of the kind of Stable Diffusion 1.5 or 2 (one text encoder).
        num_steps: of denoising, and weights.
        scheduler: DDIMScheduler, PNDMScheduler (published), DPMSolverMultistepScheduler or EulerDiscreteScheduler.
        guidance_scale: of the drawing (published 7.5).
        start_fraction: the share of the steps whose weights start at 1; those of the others start at 0.
        learning_rate: of Adam (published 0.05).
        parts: of the loss; default perceptual and directional CLIP, both read with the embedded model's own encoders.
        images: files of images to learn on, in place of seeds; the data module's `num_seeds` must be their number.
        subjects: files of subjects whose images to learn on, in place of seeds; their number likewise.
        correction_end: the share of the steps, from the noisiest on, that hold on to those images.
        image_every: steps between images in TensorBoard; 0 for none.
        seed: of the starting noise.
    """

    def __init__(
        self,
        neutral: str,
        styled: str,
        out: str,
        base_dir: str = "checkpoints/tiny",
        num_steps: int = 50,
        scheduler: str = "DDIMScheduler",
        guidance_scale: float = 7.5,
        start_fraction: float = 0.4,
        learning_rate: float = 0.05,
        parts: list[LossPart] | None = None,
        images: list[str] | None = None,
        subjects: list[str] | None = None,
        correction_end: float = 1.0,
        image_every: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1.")
        if not Path(out).parent.is_dir():
            raise ValueError(f"The card '{out}' cannot be written: create the folder '{Path(out).parent}' first.")
        self.weights = nn.Parameter(start_weights(num_steps, start_fraction))
        self.neutral, self.styled, self.out, self.base_dir = neutral, styled, Path(out), Path(base_dir)
        self.num_steps, self.guidance_scale, self.learning_rate = num_steps, guidance_scale, learning_rate
        if images and subjects:
            raise ValueError("give either images or subjects to learn on")
        check_end(correction_end)
        check_base(self.base_dir)
        self.images, self.correction_end = list(images or []), correction_end
        self.image_every, self.seed = image_every, seed
        self.parts = [VisionPerceptual(), DirectionalClip()] if parts is None else list(parts)
        self.scheduler = make_scheduler(scheduler, scheduler_config(self.base_dir))
        # Kept in a dictionary: neither optimiser nor checkpoint should hold what does not train.
        self.frozen = load_frozen(self.base_dir, with_encoder=bool(subjects))
        self.subjects = load_subjects(subjects or [], self.frozen, self.base_dir)
        self.tokenizer = CLIPTokenizer.from_pretrained(self.base_dir / "tokenizer")
        self._check_prompts()
        self._originals: dict[int, torch.Tensor] = {}
        self._inversion: Inversion | None = None

    def on_fit_start(self) -> None:
        """Prepare, now that this module is on its device; refuse a data module that does not fit the images."""
        given = self.images or self.subjects
        num_seeds = getattr(getattr(self.trainer, "datamodule", None), "num_seeds", len(given))
        if given and num_seeds != len(given):
            what = "images" if self.images else "subjects"
            raise ValueError(f"num_seeds={num_seeds} must be the number of {what}, {len(given)}.")
        self.prepare(getattr(getattr(self.trainer, "datamodule", None), "batch_size", 1))

    def _check_prompts(self) -> None:
        prompts = [self.neutral, self.styled]
        check_lengths(self._text_encoders(), prompts)
        neutral, styled = self.tokenizer(prompts).input_ids
        if neutral == styled:
            raise ValueError(
                f"The prompts {self.neutral!r} and {self.styled!r} are the same to the text encoder: say in the second "
                "what is to change."
            )

    def _text_encoders(self) -> TextEncoders:
        return TextEncoders.of([self.tokenizer], [self.frozen["text_encoder"]])

    def prepare(self, batch_size: int = 1) -> None:
        """Move the frozen parts to this one's device; encode the prompts; invert the images, `batch_size` at once."""
        for part in self.frozen.values():
            part.to(self.device)
        encoder, dtype = self.frozen.get("promptnet"), self.frozen["unet"].dtype
        self.networks = Networks(self._text_encoders(), encoder, self.device, dtype)
        with torch.no_grad():
            self.prompts = PlainPrompts(self.networks, ["", self.neutral])
            self.directions = text_directions([self.card()], self.networks)
            card = self.card()
            texts = [default_prompt(card, subject) for subject in self.subjects]
            self._rows = moved(make_requests(texts, self.subjects), self.device) if self.subjects else []
            check_request_lengths(self._rows, self.networks)
            if self.images or self.subjects:
                self._inversion = self._invert(batch_size)
        edit = Edit(self.base_dir, self.neutral, self.styled, self.device)
        for part in self.parts:
            part.prepare(edit)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as published."""
        return torch.optim.Adam([self.weights], lr=self.learning_rate)

    def on_train_start(self) -> None:
        """Learn at this command's rate: a checkpoint has brought that of the one that wrote it."""
        restate(self.trainer.optimizers[0], [{"lr": self.learning_rate}])

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss of one batch of seeds or images."""
        index = batch["index"].cpu()
        original = self.originals(index)
        image = self.draw(index, self.weights)
        found = {part.name: part(image, original).mean() for part in self.parts}
        loss = torch.stack([part.weight * found[part.name] for part in self.parts]).sum()
        self.log_dict({f"train/{name}": value for name, value in found.items()}, batch_size=len(index))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(index))
        self._show(original, image.detach())
        return loss

    def draw(self, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) of the seeds or images (B,) with these weights (N,)."""
        self.scheduler.set_timesteps(self.num_steps, device=self.device)
        rules = [*self._guidance(index), Mixing(weights[None], self.directions)]
        if self._inversion is not None:
            rules.append(self._inversion.of_rows(index.to(self.device)).rule(until=self.correction_end))
        return sample_pixels(self.frozen["unet"], self.frozen["vae"], self.scheduler, self._start(index), rules)

    @torch.no_grad()
    def originals(self, index: torch.Tensor) -> torch.Tensor:
        """The unedited images (B, 3, H, W), each drawn once, alone: rounding depends on what else is in a batch."""
        for place in index.tolist():
            if place not in self._originals:
                self._originals[place] = self.draw(torch.tensor([place]), torch.ones_like(self.weights))[0].cpu()
        return torch.stack([self._originals[place] for place in index.tolist()]).to(self.device)

    def card(self) -> EditCard:
        """The edit as it is now."""
        hashes = {name: hash_weights(part, name) for name, part in self.frozen.items() if name in COMPONENTS}
        return EditCard(
            self.weights.detach().cpu().float(),
            self.neutral,
            self.styled,
            type(self.scheduler).__name__,
            self.guidance_scale,
            hashes,
            self.base_dir.name,
            schedule_settings(self.scheduler),
        )

    def on_train_end(self) -> None:
        """Write the card."""
        if self.trainer.is_global_zero:
            self.card().save(self.out)

    def _guidance(self, index: torch.Tensor, scale: float | None = None) -> list[Rule]:
        scale = self.guidance_scale if scale is None else scale
        if self._rows:
            rows, kind = [self._rows[place] for place in index.tolist()], prediction_type(self.scheduler)
            return image_guidance(rows, sampling_defaults(self.base_dir), self.networks, kind, scale)
        places = torch.arange(len(index), device=self.device)
        uncond, prompt = (self.prompts.condition([text] * len(index), places) for text in ("", self.neutral))
        return [ClassifierFreeGuidance(uncond, prompt, scale)]

    def _start(self, index: torch.Tensor) -> torch.Tensor:
        if self._inversion is not None:
            return self._inversion.start[index.to(self.device)]
        config = self.frozen["unet"].config
        shape = (config.in_channels, config.sample_size, config.sample_size)
        noise = sample_noise(self.seed, index, "edit", shape).to(self.device)
        return noise * self.scheduler.init_noise_sigma

    def _invert(self, batch_size: int) -> Inversion:
        places = torch.arange(len(self.images or self.subjects))
        return joined([self._invert_some(index) for index in places.split(batch_size)])

    def _invert_some(self, index: torch.Tensor) -> Inversion:
        up, down = self._guidance(index, 1.0), self._guidance(index)
        how: dict[str, Any] = {"num_steps": self.num_steps, "inversion_rules": up}
        return invert(self.frozen["unet"], self.scheduler, self._image_latents(index), down, **how)

    def _image_latents(self, index: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) of these images, or of these subjects' first reference images."""
        vae, unet, places = self.frozen["vae"], self.frozen["unet"], index.tolist()
        if self.subjects:
            latents = [self.subjects[place].reference_latents[:1] for place in places]
            return torch.cat(latents).to(self.device, unet.dtype)
        size_px = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
        pixels = torch.stack([to_pixels(square(open_image(self.images[place]), size_px)) for place in places])
        return encode_pixels(vae, pixels.to(self.device))

    def _show(self, original: torch.Tensor, image: torch.Tensor) -> None:
        """Originals above edited images, and the weights' curve, in TensorBoard."""
        step, logger = self.global_step, self.logger
        add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
        if add_image is None or not self.image_every or step % self.image_every:
            return
        rows = [torch.cat(list(pixels[:8]), dim=2) for pixels in (original, image)]  # (3, H, 8 W)
        add_image("images", (torch.cat(rows, dim=1) / 2 + 0.5).clamp(0, 1).float().cpu(), step)
        add_image("weights", weights_image(self.weights.detach().cpu()), step)


def weights_image(weights: torch.Tensor, height_px: int = 96, column_px: int = 8) -> torch.Tensor:
    """Weights (N,) as a bar chart (1, height, N column): the bottom is -0.5, the top 1.5, grey lines at 0 and 1."""
    levels = torch.linspace(1.5, -0.5, height_px)[:, None]  # (height, 1)
    bars = (levels > weights).float()  # (height, N), white above the bar
    lines = (torch.minimum(levels.abs(), (levels - 1).abs()) < 1 / height_px).expand_as(bars)
    return torch.where(lines, torch.full_like(bars, 0.5), bars).repeat_interleave(column_px, 1)[None]


def __getattr__(name: str) -> Any:
    if name == "DisentangleStage":  # in configs of before, for one release
        warnings.warn("DisentangleStage is now EditStage.", DeprecationWarning, stacklevel=2)
        return EditStage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
