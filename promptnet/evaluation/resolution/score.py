"""Scores of images of any size by the validation judge, against real renders and the model's own images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, FIELDS, IDENTITY_FIELDS
from promptnet.datasets.avatars.render import render
from promptnet.evaluation.harness.tasks import Person
from promptnet.images.crop import square
from promptnet.metrics.bootstrap import Interval, difference, interval
from promptnet.metrics.head_count import HeadFinder
from promptnet.metrics.judge import Array, Judge, Prediction, read_images
from promptnet.metrics.kid import kid_difference, kid_interval
from promptnet.models.judge import JUDGE_SIZE_PX

DISTANCES = ("kid_r", "kid_b")
"""Distances to real renders at that size, and to the model's own images at the trained size: smaller is better."""
FRACTIONS = ("attributes", "identity", "one_head")
"""Fractions of fields predicted right, and of images with exactly one head: larger is better."""
FEWEST = 8
"""Fewer images are not measured."""


@dataclass(frozen=True)
class SizeScores:
    """Scores of one method at one size.

    Args:
        features: (P, F) of the images, each resized to the judge's size.
        fractions: measure to one number an image, (P,).
        heads: number in each image, (P,).
    """

    features: Array
    fractions: Mapping[str, Array]
    heads: Array


@dataclass(frozen=True)
class SizeScorer:
    """Score the methods of one size.

    Args:
        people: in the images, one prompt each.
        judge: of validation.
        heads: counts heads.
        real: the judge's prediction for real renders at this size.
        own: the same for the model's own images at the trained size.
        device: of the judge.
    """

    people: Sequence[Person]
    judge: Judge
    heads: HeadFinder
    real: Prediction
    own: Prediction
    device: str | None = None

    @classmethod
    def of(
        cls,
        people: Sequence[Person],
        size: tuple[int, int],
        own: Sequence[Image.Image],
        judge: Judge,
        heads: HeadFinder,
        device: str | None = None,
    ) -> "SizeScorer":
        """Render the real images of one size (width, height) and make the scorer."""
        real = read_images(judge, brought(real_images(people, size)), device)
        return cls(people, judge, heads, real, read_images(judge, brought(own), device), device)

    def score(self, images: Sequence[Image.Image]) -> SizeScores:
        """Score one method's images."""
        prediction = read_images(self.judge, brought(images), self.device)
        counts = self.heads.count(images)
        fractions = {
            "attributes": right(self.people, prediction, ATTRIBUTE_FIELDS),
            "identity": right(self.people, prediction, IDENTITY_FIELDS),
            "one_head": (counts == 1).astype(float),
        }
        return SizeScores(self._scaled(prediction), fractions, counts.astype(float))

    def record(self, scores: SizeScores) -> dict[str, Any]:
        """Return a method's entry in results.json: each measure with its interval, and the mean number of heads."""
        found = {name: kid_interval(scores.features, others) for name, others in self._others().items()}
        found |= {name: interval(scores.fractions[name]) for name in FRACTIONS}
        return {**{name: each.record() for name, each in found.items()}, "heads": float(scores.heads.mean())}

    def gains(self, scores: SizeScores, rival: SizeScores) -> dict[str, Interval]:
        """Return by how much one method is better than another, over the same prompts: above 0 is better."""
        others = self._others()
        found = {name: kid_difference(rival.features, scores.features, others[name]) for name in DISTANCES}
        return found | {name: difference(scores.fractions[name], rival.fractions[name]) for name in FRACTIONS}

    def _others(self) -> dict[str, Array]:
        return {"kid_r": self._scaled(self.real), "kid_b": self._scaled(self.own)}

    def _scaled(self, prediction: Prediction) -> Array:
        """Return features in units of the real renders', or the kernel's third power would see lengths alone."""
        return prediction.features / float(np.sqrt(np.mean(self.real.features**2)))


def brought(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return the largest centred square of each image, at the judge's size."""
    return [square(image, JUDGE_SIZE_PX) for image in images]


def real_images(people: Sequence[Person], size: tuple[int, int]) -> list[Image.Image]:
    """Render everybody's true image at a size; for a wide or tall one the middle square, as only that is compared."""
    return [render(person.identity, person.eval_prompts[0].attributes, min(size)) for person in people]


def right(people: Sequence[Person], prediction: Prediction, fields: Sequence[str] = tuple(FIELDS)) -> Array:
    """Return the fraction of fields predicted right in each person's image, (P,)."""
    truths = [{**person.identity.record(), **person.eval_prompts[0].attributes.record()} for person in people]
    pairs = zip(prediction.records, truths, strict=True)
    fractions = [np.mean([record[field] == truth[field] for field in fields]) for record, truth in pairs]
    return np.asarray(fractions, dtype=np.float64)
