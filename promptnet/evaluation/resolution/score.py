"""What the validation judge makes of images of any size, against real renders and the model's own images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from promptnet.datasets.avatars.render import ATTRIBUTE_FIELDS, FIELDS, IDENTITY_FIELDS, render
from promptnet.evaluation.harness.tasks import Person
from promptnet.images.crop import square
from promptnet.metrics.bootstrap import Interval, difference, interval
from promptnet.metrics.head_count import HeadFinder
from promptnet.metrics.judge import Array, Judge, Prediction, read_images
from promptnet.metrics.kid import kid_difference, kid_interval
from promptnet.models.judge import JUDGE_SIZE_PX

DISTANCES = ("kid_r", "kid_b")
"""To real renders at that size, and to the model's own images at the trained size: smaller is better."""
FRACTIONS = ("attributes", "identity", "one_head")
"""Of fields read right, and of images with exactly one head: larger is better."""
FEWEST = 8
"""With fewer images there is nothing to measure."""


@dataclass(frozen=True)
class SizeScores:
    """One row at one size.

    Args:
        features: (P, F) of the images, each brought to the judge's size.
        shares: measure to one number an image, (P,).
        heads: how many each shows, (P,).
    """

    features: Array
    shares: Mapping[str, Array]
    heads: Array


@dataclass(frozen=True)
class SizeScorer:
    """Marks the rows of one size.

    Args:
        people: who is drawn, one prompt each.
        judge: of validation.
        heads: counts heads.
        real: what the judge makes of real renders at this size.
        own: the same of the model's own images at the trained size.
        device: the judge's.
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
        """Render the real images of one size (width, height) and read them."""
        real = read_images(judge, brought(real_images(people, size)), device)
        return cls(people, judge, heads, real, read_images(judge, brought(own), device), device)

    def mark(self, images: Sequence[Image.Image]) -> SizeScores:
        """Score one row's images."""
        prediction = read_images(self.judge, brought(images), self.device)
        counts = self.heads.count(images)
        shares = {
            "attributes": right(self.people, prediction, ATTRIBUTE_FIELDS),
            "identity": right(self.people, prediction, IDENTITY_FIELDS),
            "one_head": (counts == 1).astype(float),
        }
        return SizeScores(self._scaled(prediction), shares, counts.astype(float))

    def record(self, scores: SizeScores) -> dict[str, Any]:
        """A row as results.json has it: each measure with its interval, and the mean number of heads."""
        found = {name: kid_interval(scores.features, others) for name, others in self._others().items()}
        found |= {name: interval(scores.shares[name]) for name in FRACTIONS}
        return {**{name: each.record() for name, each in found.items()}, "heads": float(scores.heads.mean())}

    def gains(self, scores: SizeScores, rival: SizeScores) -> dict[str, Interval]:
        """By how much one row is better than another, over the same prompts: above 0 is better."""
        others = self._others()
        found = {name: kid_difference(rival.features, scores.features, others[name]) for name in DISTANCES}
        return found | {name: difference(scores.shares[name], rival.shares[name]) for name in FRACTIONS}

    def _others(self) -> dict[str, Array]:
        return {"kid_r": self._scaled(self.real), "kid_b": self._scaled(self.own)}

    def _scaled(self, prediction: Prediction) -> Array:
        """Features in units of those of real renders, or the kernel's third power would see lengths alone."""
        return prediction.features / float(np.sqrt(np.mean(self.real.features**2)))


def brought(images: Sequence[Image.Image]) -> list[Image.Image]:
    """The largest centred square of each, at the judge's size."""
    return [square(image, JUDGE_SIZE_PX) for image in images]


def real_images(people: Sequence[Person], size: tuple[int, int]) -> list[Image.Image]:
    """Everybody's true image at a size; of a wide or tall one the middle square, which is all that is compared."""
    return [render(person.identity, person.eval_prompts[0].attributes, min(size)) for person in people]


def right(people: Sequence[Person], prediction: Prediction, fields: Sequence[str] = tuple(FIELDS)) -> Array:
    """The share of fields read right in each person's image, (P,)."""
    truths = [{**person.identity.record(), **person.eval_prompts[0].attributes.record()} for person in people]
    pairs = zip(prediction.records, truths, strict=True)
    shares = [np.mean([record[field] == truth[field] for field in fields]) for record, truth in pairs]
    return np.asarray(shares, dtype=np.float64)
