"""The second set of weights that ships: people without end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptnet import PromptNetPipeline
from promptnet.datasets.avatars.module import pixels_of
from promptnet.datasets.avatars.person import FIELDS, IDENTITY_FIELDS
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.tasks import make_people
from promptnet.models.judge import AvatarJudge

BASE = Path(__file__).parents[1] / "checkpoints/tiny"


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe: Any = PromptNetPipeline.from_pretrained(BASE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def identity(images: list[Any], people: list[Any]) -> float:
    """Share of identity fields that the validation judge reads as the record has them."""
    judge: Any = AvatarJudge.from_pretrained(judge_folder(BASE, "validation")).float().eval()
    pixels = torch.stack([pixels_of(np.asarray(image.convert("RGB"))) for image in images])
    with torch.no_grad():
        read = judge.look(pixels).words
    hits = [
        FIELDS[field][int(read[field][place].argmax())] == person.identity.record()[field]
        for place, person in enumerate(people)
        for field in IDENTITY_FIELDS
    ]
    return sum(hits) / len(hits)


def test_the_judges_read_what_is_drawn():
    people = make_people("validation", 24, 1)
    assert identity([person.true_images(64)[0] for person in people], people) > 0.9


@pytest.mark.parametrize("frame", ["plain", "zoom-1.2"])
def test_people_are_recognised_without_tuning(pipe: Any, frame: str):
    """Far from what it reaches (docs/results/embedded-model.md), farther from what guessing would."""
    people = make_people("validation", 8, 1, frame=frame)
    images = []
    for person in people:
        subject = pipe.encode(person.reference_image(64), class_word="a person", registration="never")
        generator = torch.Generator().manual_seed(person.seed)
        drawn = pipe("a portrait of S*", subject=subject, num_inference_steps=8, generator=generator)
        images += drawn.images
    assert identity(images, people) > 0.6
