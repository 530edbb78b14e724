"""Calibrate an encoder: measure what it knows, and where that ends, on images that are given."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from promptnet.images.load import Source
from promptnet.inference.admission import states_of
from promptnet.inference.references import open_references
from promptnet.models.familiarity import Familiarity

logger = logging.getLogger(__name__)

_BATCH = 32
_ACCEPTED = 0.98  # share of unseen known images that are good
_ALIKE = 0.05  # share of people drawn again whose likeness is doubtful
_NEUTRAL = "a portrait of S*"
_PLAIN = {"fusion_steps": 0}  # what fusion adds is not the encoder's


def calibrate(
    pipe: Any,
    known: Sequence[Source],
    unseen: Sequence[Source],
    foreign: Sequence[Source] = (),
    *,
    num_drawn: int = 32,
    num_inference_steps: int | None = None,
    seed: int = 0,
    callback: Callable[[int, int], object] | None = None,
) -> Familiarity:
    """Measure what an encoder knows.

    Args:
        pipe: a PromptNetPipeline.
        known: images as in the encoder's training, of several times as many people as the image encoder is wide.
        unseen: images of the same kind, of other people; they set the limit of doubt, which two of a hundred pass.
        foreign: images that the encoder cannot know. An image is foreign halfway from the limit of doubt to the
            median of these. Without, none is.
        num_drawn: how many of the unseen people are drawn again, to learn how alike that makes them.
        num_inference_steps: of these; None takes the checkpoint's own.
        seed: of the noise.
        callback: called with the number of images drawn again, and of all.

    Raises:
        FamiliarityError: there are too few known images.
        ValueError: there are no unseen images.
        ImageError: an image cannot be used.
    """
    found = Familiarity.fit(_vision_states(pipe, known))
    found = _with_limits(found, _vision_states(pipe, unseen), _vision_states(pipe, foreign))
    alike = _likenesses(pipe, found, unseen[:num_drawn], num_inference_steps, seed, callback)
    return replace(found, alike=float(alike.quantile(_ALIKE))) if len(alike) else found


def _with_limits(found: Familiarity, unseen: Tensor, foreign: Tensor) -> Familiarity:
    if not len(unseen):
        raise ValueError("There are no unseen images of the known kind: show a hundred at least.")
    doubtful = float(found.distances(unseen).quantile(_ACCEPTED))
    if not len(foreign):
        return replace(found, doubtful=doubtful)
    farther = float(found.distances(foreign).median())
    if farther <= doubtful:
        logger.warning("The foreign images are as near as known ones: no image will be refused.")
        return replace(found, doubtful=doubtful)
    return replace(found, doubtful=doubtful, foreign=math.sqrt(doubtful * farther))


def _vision_states(pipe: Any, images: Sequence[Source]) -> Tensor:
    """The image encoder's states (K, T, V); of no image (0, 1, 1)."""
    parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    states = [states_of(pipe, open_references(list(part))).cpu() for part in parts]
    return torch.cat(states) if states else torch.zeros(0, 1, 1)


def _likenesses(
    pipe: Any,
    found: Familiarity,
    images: Sequence[Source],
    num_inference_steps: int | None,
    seed: int,
    callback: Callable[[int, int], object] | None,
) -> Tensor:
    """How alike people drawn again are to their reference images, (N,)."""
    alike = []
    for place, image in enumerate(images):
        subject = pipe.encode(image, registration="never", allow_foreign=True)
        generator = torch.Generator().manual_seed(seed + place)
        drawn = pipe(
            _NEUTRAL, subject=subject, num_inference_steps=num_inference_steps, generator=generator, **_PLAIN
        ).images[0]
        pair = (states_of(pipe, [one]) for one in (*open_references(image), drawn))
        alike.append(found.likeness(*pair))
        if callback is not None:
            callback(place + 1, len(images))
    return torch.cat(alike) if alike else torch.zeros(0)
