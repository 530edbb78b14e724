"""What the validation judge makes of pictures of any size, against real renders and the model's own pictures."""

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
from promptnet.metrics.judge import Array, Judge, Reading, read_pictures
from promptnet.metrics.kid import kid_difference, kid_interval
from promptnet.models.judge import JUDGE_SIZE_PX

DISTANCES = ("kid_r", "kid_b")
"""To real renders at that size, and to the model's own pictures at the trained size: smaller is better."""
SHARES = ("attributes", "identity", "one_head")
"""Of fields read right, and of pictures with exactly one head: larger is better."""
FEWEST = 8
"""With fewer pictures there is nothing to measure."""


@dataclass(frozen=True)
class Marks:
    """One row at one size.

    Args:
        features: (P, F) of the pictures, each brought to the judge's size.
        shares: measure to one number a picture, (P,).
        heads: how many each shows, (P,).
    """

    features: Array
    shares: Mapping[str, Array]
    heads: Array


@dataclass(frozen=True)
class SizeMarker:
    """Marks the rows of one size.

    Args:
        people: who is drawn, one prompt each.
        judge: of validation.
        heads: counts heads.
        real: what the judge makes of real renders at this size.
        own: the same of the model's own pictures at the trained size.
        device: the judge's.
    """

    people: Sequence[Person]
    judge: Judge
    heads: HeadFinder
    real: Reading
    own: Reading
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
    ) -> "SizeMarker":
        """Render the real pictures of one size (width, height) and read them."""
        real = read_pictures(judge, brought(real_pictures(people, size)), device)
        return cls(people, judge, heads, real, read_pictures(judge, brought(own), device), device)

    def mark(self, pictures: Sequence[Image.Image]) -> Marks:
        """Score one row's pictures."""
        reading = read_pictures(self.judge, brought(pictures), self.device)
        counts = self.heads.count(pictures)
        shares = {
            "attributes": right(self.people, reading, ATTRIBUTE_FIELDS),
            "identity": right(self.people, reading, IDENTITY_FIELDS),
            "one_head": (counts == 1).astype(float),
        }
        return Marks(self._scaled(reading), shares, counts.astype(float))

    def record(self, marks: Marks) -> dict[str, Any]:
        """A row as results.json has it: each measure with its interval, and the mean number of heads."""
        found = {name: kid_interval(marks.features, others) for name, others in self._others().items()}
        found |= {name: interval(marks.shares[name]) for name in SHARES}
        return {**{name: each.record() for name, each in found.items()}, "heads": float(marks.heads.mean())}

    def gains(self, marks: Marks, rival: Marks) -> dict[str, Interval]:
        """By how much one row is better than another, over the same prompts: above 0 is better."""
        others = self._others()
        found = {name: kid_difference(rival.features, marks.features, others[name]) for name in DISTANCES}
        return found | {name: difference(marks.shares[name], rival.shares[name]) for name in SHARES}

    def _others(self) -> dict[str, Array]:
        return {"kid_r": self._scaled(self.real), "kid_b": self._scaled(self.own)}

    def _scaled(self, reading: Reading) -> Array:
        """Features in units of those of real renders, or the kernel's third power would see lengths alone."""
        return reading.features / float(np.sqrt(np.mean(self.real.features**2)))


def brought(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The largest centred square of each, at the judge's size."""
    return [square(picture, JUDGE_SIZE_PX) for picture in pictures]


def real_pictures(people: Sequence[Person], size: tuple[int, int]) -> list[Image.Image]:
    """Everybody's true picture at a size; of a wide or tall one the middle square, which is all that is compared."""
    return [render(person.identity, person.asks[0].attributes, min(size)) for person in people]


def right(people: Sequence[Person], reading: Reading, fields: Sequence[str] = tuple(FIELDS)) -> Array:
    """The share of fields read right in each person's picture, (P,)."""
    truths = [{**person.identity.record(), **person.asks[0].attributes.record()} for person in people]
    pairs = zip(reading.records, truths, strict=True)
    shares = [np.mean([record[field] == truth[field] for field in fields]) for record, truth in pairs]
    return np.asarray(shares, dtype=np.float64)
