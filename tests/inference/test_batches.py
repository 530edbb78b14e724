"""Image 1 of several, as `promptnet generate --num-images` asks for them, is the image of one alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from promptnet.inference.editing.card import EditCard, edit_fingerprint

TEXTS = ("a photo of a person", "a photo of a person wearing a hat")
# In a batch, matrix products sum in another order; nothing else may differ.
ROUNDING = 2e-5


def images(pipe: Any, seeds: Sequence[int], prompt: str, **options: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": 3, "output_type": "latent", **options}
    return pipe(prompt, generator=generators, num_images_per_prompt=len(seeds), **options).images


def kinds(pipe: Any, make_subject: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    subject = make_subject(pipe, 1, tuned=True, num_references=2)
    card = EditCard(torch.tensor([0.2, 0.8]), *TEXTS, "DDIMScheduler", 3.0, edit_fingerprint(pipe), "tiny")
    return {
        "plain": ("a dog", {}),
        "fusion": ("S* on a chair", {"subject": subject, "fusion_steps": 2}),
        "refinement": ("S* on a chair", {"subject": subject, "fusion_steps": 0, "class_scale": 1.5}),
        "noise of the steps": ("S* on a chair", {"subject": subject, "eta": 1.0}),
        "another size": ("S*", {"subject": subject, "height": 16, "width": 24, "encoder_input": "reference"}),
        "edit": (TEXTS[0], {"edits": card, "num_inference_steps": 2}),
        "edit of a subject": ("a photo of S*", {"edits": card, "subject": subject, "num_inference_steps": 2}),
    }


@pytest.mark.parametrize(
    "kind", ["plain", "fusion", "refinement", "noise of the steps", "another size", "edit", "edit of a subject"]
)
def test_each_of_several_images_is_the_image_alone(kind: str, pipe: Any, make_subject: Any) -> None:
    prompt, options = kinds(pipe, make_subject)[kind]
    together = images(pipe, [5, 6, 7], prompt, **options)
    for place, seed in enumerate([5, 6, 7]):
        alone = images(pipe, [seed], prompt, **options)
        torch.testing.assert_close(together[place : place + 1], alone, rtol=ROUNDING, atol=ROUNDING)
    assert (together[0] - together[1]).abs().max() > 0.1
