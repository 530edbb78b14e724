"""Drawing with the parts of a training stage, and leaving nothing behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor

from promptnet.inference.pipeline import PromptNetPipeline
from promptnet.inference.sampling.arguments import check_base_model, check_text_encoders
from promptnet.training.callbacks.held_out_people import HeldOutPerson


def stage_pipeline(stage: Any) -> PromptNetPipeline:
    """A pipeline around the very networks of a pretraining stage, without a second copy of any weight.

    A stage may build it itself, in a method `stage_pipeline`.

    Raises:
        ValueError: the stage's base model is of a kind that PromptNetPipeline does not draw with.
    """
    if hasattr(stage, "stage_pipeline"):
        return stage.stage_pipeline()
    parts = {name: stage.frozen[name] for name in ("vae", "unet", "image_encoder")}
    pipe = PromptNetPipeline(
        **parts,
        **_text_parts(stage),
        force_zeros_for_empty_prompt=stage.forces_zeros,
        scheduler=type(stage.scheduler).from_config(stage.scheduler.config),  # sampling sets its timesteps
        promptnet=stage.promptnet,
        feature_extractor=feature_extractor_of(stage),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_can_generate(stage: Any) -> None:
    """Refuse, before a long training, what `stage_pipeline` will not be able to draw with.

    Raises:
        ValueError: names what is not supported.
    """
    if hasattr(stage, "stage_pipeline"):
        return
    unet = stage.frozen["unet"].config
    check_base_model(unet, stage.frozen["vae"].config)
    check_text_encoders(unet, _text_parts(stage))


def _text_parts(stage: Any) -> dict[str, Any]:
    """The stage's text encoders and tokenizers, by the names of the pipeline's components."""
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    for suffix, text_encoder in zip(("", "_2"), stage.text_encoders.text_encoders, strict=False):
        parts |= {f"text_encoder{suffix}": text_encoder.network, f"tokenizer{suffix}": text_encoder.tokenizer}
    return parts


def is_sharded(trainer: Any) -> bool:
    """Whether the strategy cuts weights into parts (FSDP): the encoder then runs inside a training step alone."""
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)


def feature_extractor_of(stage: Any) -> Any:
    """The preprocessing of the stage's own image encoder; where that has none, values in [-1, 1], as in training."""
    if stage.image_processor is not None:
        return stage.image_processor
    side_px = stage.frozen["image_encoder"].config.image_size
    square = {"height": side_px, "width": side_px}
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(size={"shortest_edge": side_px}, crop_size=square, image_mean=half, image_std=half)


def draw(
    pipe: PromptNetPipeline,
    person: HeldOutPerson,
    num_steps: int,
    guidance: float,
    is_to_stop: Callable[[], bool] = lambda: False,
    word_positions: str = "natural",
) -> list[Image.Image] | None:
    """One person's images with plain guidance: no tuning, no fusion, no class term; from each ask's own noise.

    Args:
        pipe: what `stage_pipeline` gives.
        person: who, and what is asked.
        num_steps: denoising steps.
        guidance: weight of the prediction under S*.
        word_positions: those that the encoder is trained with, see `promptnet.models.text`.
        is_to_stop: asked behind every step, as often on every rank; if it says so, there are no images.
    """
    stopped = False

    def after_step(pipe: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        nonlocal stopped
        stopped = pipe._interrupt = is_to_stop()
        return state

    subject = pipe.encode(person.reference)
    generators = [torch.Generator().manual_seed(eval_prompt.seed) for eval_prompt in person.eval_prompts]
    plain: dict[str, Any] = {"class_scale": 0.0, "fusion_steps": 0, "guidance_rescale": 0.0, "eta": 0.0}
    plain |= {"guidance_interval": (0.0, 1.0), "pseudo_word_every": 1}
    with _one_by_one(pipe.vae):
        images = pipe(
            [eval_prompt.prompt for eval_prompt in person.eval_prompts],
            subject=subject,
            num_inference_steps=num_steps,
            subject_scale=guidance,
            generator=generators,
            resolution="off",
            word_positions=word_positions,
            callback_on_step_end=after_step,
            **plain,
        ).images
    return None if stopped else images


@contextmanager
def _one_by_one(vae: Any) -> Iterator[None]:
    """Have the VAE decode a batch image by image: in float32, all at once may not fit beside a training."""
    before, vae.use_slicing = vae.use_slicing, True
    try:
        yield
    finally:
        vae.use_slicing = before


@contextmanager
def undisturbed(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluate networks without gradients; afterwards every mode and every global random state is what it was."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            for network in networks:
                network.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)
