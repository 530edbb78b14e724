"""Edits of real images: an image file, or the image that a subject keeps."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from promptnet.images.crop import square, to_pixels
from promptnet.images.load import Source, open_image
from promptnet.images.masks import check_white, open_mask
from promptnet.inference.editing.card import EditCard, EditError, listed_cards
from promptnet.inference.editing.inversion import (
    PUBLISHED_END,
    Inversion,
    KeptOutside,
    check_end,
    check_invertible,
    invert,
)
from promptnet.inference.editing.measured import RENDERS, warn_of_losses
from promptnet.inference.editing.rule import check_request_lengths, joined_weights, mixing_rule
from promptnet.inference.references import decode_finite, encode_pixels
from promptnet.inference.sampling.arguments import check_output_type
from promptnet.inference.sampling.conditions import Networks, networks_of
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.loop import Rule, sample
from promptnet.inference.sampling.own_call import own_call
from promptnet.inference.sampling.requests import Request, make_requests, moved, texts_of
from promptnet.inference.sampling.rules import build_rules
from promptnet.inference.sampling.schedule import plan, prediction_type
from promptnet.inference.subject.subject import Subject
from promptnet.inference.values import generators
from promptnet.io.renamed import renamed_arguments
from promptnet.models.vocabulary import warn_of_unknown_words


@renamed_arguments(correct_until="correction_end")
@torch.no_grad()
def edit_image(
    pipe: Any,
    image: Source | Subject,
    cards: EditCard | Sequence[EditCard],
    *,
    prompt: str | None = None,
    correction_end: float | None = None,
    as_published: bool = False,
    mask: Source | None = None,
    crop: bool = False,
    generator: torch.Generator | None = None,
    output_type: str = "pil",
) -> Any:
    """Edit a real image; with weights of 1 it comes back as the VAE has it.

    Args:
        pipe: a PromptNetPipeline with the cards' base model and scheduler.
        image: a file or `PIL.Image`, or a subject, whose first reference image is edited.
        cards: one edit or several; `.scaled(strength)` dials them.
        prompt: what the image shows; None is the first edit's neutral prompt, for a subject with `S*` in place of
            the class word.
        correction_end: the share of the steps, from the noisiest on, that hold on to the image; None is all of them,
            or as published the published share.
        as_published: invert the image as the published code does; see `inversion.invert`.
        mask: an image of the same size, white where the edit may act; None is everywhere.
        crop: take the central square of an image, and of its mask, of another size than the base model draws.
        generator: where the noise of the published corrections is drawn from.
        output_type: "pil", "np", "pt" or "latent".

    Returns:
        A list with one image, or an array or tensor with one row, as `PromptNetPipeline` gives them.

    Raises:
        ValueError: a card, the image or the mask does not fit, or the prompt is too long or needs `S*`.
    """
    check_output_type(output_type)
    generators(generator)
    if correction_end is None:
        correction_end = PUBLISHED_END if as_published else 1.0
    check_end(correction_end)
    cards = listed_cards(cards)
    num_steps = joined_weights(cards).shape[1]
    for card in cards:
        card.check(pipe)
    warn_of_losses(cards, RENDERS)
    check_invertible(pipe.scheduler)
    subject = image if isinstance(image, Subject) else None
    if subject is not None:
        subject.check(pipe)
    text = prompt if prompt is not None else default_prompt(cards[0], subject)
    rows = make_requests(text, subject)
    networks = networks_of(pipe)
    check_request_lengths(rows, networks)
    styles = [text for card in cards for text in (card.neutral, card.styled)]
    warn_of_unknown_words(
        [text_encoder.tokenizer for text_encoder in networks.text_encoders.text_encoders], [*texts_of(rows), *styles]
    )
    opened = image if isinstance(image, Subject) else open_image(image)
    latents = image_latents(pipe, opened, crop=crop)
    where = None if mask is None else mask_of(pipe, mask, opened, crop=crop)
    how: dict[str, Any] = {"num_steps": num_steps, "guidance_scale": cards[0].guidance_scale}
    inverted = invert_images(pipe, latents, rows, as_published=as_published, generator=generator, **how)
    edited = redrawn(pipe, inverted, cards, correction_end=correction_end, mask=where)
    if output_type == "latent":
        return edited
    return pipe.image_processor.postprocess(decode_finite(pipe.vae, edited), output_type=output_type)


@dataclass(frozen=True, eq=False)
class InvertedImages:
    """Images as noise and corrections, with the rules of their unedited drawing."""

    inversion: Inversion
    rules: Sequence[Rule]
    networks: Networks


@torch.no_grad()
def invert_images(
    pipe: Any,
    latents: Tensor,
    rows: Sequence[Request],
    *,
    num_steps: int,
    guidance_scale: float,
    as_published: bool = False,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> InvertedImages:
    """Invert images once, to be edited as often as wanted.

    Args:
        pipe: a PromptNetPipeline with the edits' scheduler.
        latents: (B, C, h, w), scaled VAE latents of the images.
        rows: B, what the images show.
        num_steps: of the drawing.
        guidance_scale: of the drawing.
        as_published: as the published code does, guided on the way up too; see `inversion.invert`.
        noise: what the published corrections are made with.
        generator: where it is drawn from, if not given.

    Raises:
        ValueError: the scheduler cannot replay images.
    """
    networks = networks_of(pipe)
    rows, kind = moved(rows, networks.device), prediction_type(pipe.scheduler)
    upward, drawing = (
        image_guidance(rows, pipe.sampling_defaults, networks, kind, scale) for scale in (1.0, guidance_scale)
    )
    how: dict[str, Any] = {"num_steps": num_steps, "inversion_rules": drawing if as_published else upward}
    how |= {"as_published": as_published, "noise": noise, "generator": generator}
    with own_call(pipe) as call:
        return InvertedImages(invert(pipe.unet, call.scheduler, latents, drawing, **how), drawing, networks)


@torch.no_grad()
def redrawn(
    pipe: Any,
    inverted: InvertedImages,
    cards: Sequence[EditCard],
    *,
    correction_end: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Latents (B, C, h, w) of inverted images drawn again with edits; `mask` is as `KeptOutside` wants it."""
    inversion = inverted.inversion
    rules = [*inverted.rules, mixing_rule(cards, inverted.networks)]
    rules.append(inversion.rule(until=correction_end))
    if mask is not None:
        rules.append(KeptOutside(inversion.levels, mask))
    with own_call(pipe) as call:
        call.scheduler.set_timesteps(cards[0].num_steps, device=inversion.start.device)
        return sample(pipe.unet, call.scheduler, inversion.start, rules, steps=plan(call.scheduler))


def default_prompt(card: EditCard, subject: Subject | None) -> str:
    """The neutral prompt, with `S*` in place of the class word where the image is a subject's.

    Raises:
        EditError: the neutral prompt does not mention the subject's class word.
    """
    if subject is None:
        return card.neutral
    word = re.sub(r"^(?:a|an|the)\s+", "", subject.class_word.strip())
    text, count = re.subn(rf"\b(?:(?:a|an|the)\s+)?{re.escape(word)}\b", "S*", card.neutral, count=1)
    if not count:
        raise EditError(
            f"The edit's neutral prompt {card.neutral!r} does not mention the subject's class word {word!r}: "
            "give prompt=..., what the image shows, with S* in it."
        )
    return text


def image_latents(pipe: Any, image: Source | Subject, *, crop: bool = False) -> Tensor:
    """Scaled latents (1, C, h, w) of an image, or of a subject's first reference image.

    Raises:
        ValueError: the image cannot be used, or has another size than the base model draws and is not to be cropped.
    """
    device = pipe._execution_device
    if isinstance(image, Subject):
        return image.reference_latents[:1].to(device, pipe.unet.dtype)
    image = framed(pipe, open_image(image), "image", crop=crop)
    return encode_pixels(pipe.vae, to_pixels(image)[None].to(device)).to(pipe.unet.dtype)


def framed(pipe: Any, image: Image.Image, noun: str, *, crop: bool) -> Image.Image:
    """An image as the base model draws them.

    Raises:
        ValueError: it has another size, and is not to be cropped.
    """
    height_px, width_px = pipe.trained_size_px
    if crop:
        image = square(image, height_px)
    if image.size != (width_px, height_px):
        raise ValueError(
            f"The {noun} has {image.width}x{image.height} pixels, but this base model draws {width_px}x{height_px}: "
            "resize it, or ask for its central square (crop=True, --crop)."
        )
    return image


def mask_of(pipe: Any, mask: Source, image: Image.Image | Subject, *, crop: bool = False) -> Tensor:
    """A mask image as shares (1, 1, h, w) in [0, 1] on the latents' grid, cropped as its image is.

    Raises:
        ValueError: it cannot be used, has another size than the image or transparent parts, or is nowhere white.
    """
    opened, (height_px, width_px) = open_mask(mask), pipe.trained_size_px
    size_px = (width_px, height_px) if isinstance(image, Subject) else image.size
    if opened.size != size_px:
        raise ValueError(
            f"The mask has {opened.width}x{opened.height} pixels, but the image {size_px[0]}x{size_px[1]}: give a mask "
            "of the image's own size."
        )
    check_white(opened)
    grey = framed(pipe, opened, "mask", crop=crop).convert("RGB")
    fractions = to_pixels(grey)[None, :1] / 2 + 0.5
    grid = [side_px // pipe.vae_scale_factor for side_px in (height_px, width_px)]
    return F.interpolate(fractions, size=grid, mode="area").to(pipe._execution_device, pipe.unet.dtype)


def image_guidance(
    rows: Sequence[Request], defaults: SamplingConfig, networks: Networks, prediction: str, scale: float
) -> list[Rule]:
    """Guidance without fusion, which re-noises, and without rescaling, which no edit was learned with.

    Args:
        rows: what the images show; subjects on the networks' device.
        defaults: whose parameters rows with a subject are drawn with.
        networks: what makes conditions.
        prediction: what the U-Net predicts.
        scale: of the guidance; at 1 there is none, for rows with a subject neither.
    """
    config = replace(defaults, guidance_scale=scale, fusion_steps=0, guidance_rescale=0.0, guidance_interval=(0.0, 1.0))
    if scale == 1:
        config = replace(config, subject_scale=1.0, class_scale=0.0)
    return build_rules(rows, config, networks, prediction=prediction)
