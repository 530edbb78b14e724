"""From pictures to one row of the comparison: every person's scores, and the accuracy field by field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from promptnet.datasets.avatars.render import Split
from promptnet.evaluation.harness.tasks import Person, attribute_chances, identity_chances
from promptnet.metrics.judge import Array, Judge, Reading, feature_distance, pixel_l1, read_pictures
from promptnet.metrics.scores import Chances, Marked, Record, field_accuracy, harmonic, rescaled_share

METRICS = ("identity", "attributes", "harmonic", "distance", "pixel_l1")


@dataclass(frozen=True)
class RowScores:
    """A row's scores."""

    people: Mapping[str, Array]
    """Metric to one number a person, (P,), in the order of the people."""
    fields: Mapping[str, float]
    """Field to the share of pictures, among those for which it counts, in which the judge read it right."""


@dataclass(frozen=True)
class Marker:
    """Everything that stays the same from row to row: the people, the judge, and what it makes of the true pictures."""

    people: Sequence[Person]
    judge: Judge
    identity_chances: Chances
    attribute_chances: Chances
    truths: Sequence[Image.Image]
    true_reading: Reading
    device: str | torch.device | None = None

    @classmethod
    def of(
        cls,
        people: Sequence[Person],
        judge: Judge,
        *,
        identity_chances: Chances,
        attribute_chances: Chances,
        size_px: int,
        device: str | torch.device | None = None,
    ) -> "Marker":
        """Draw the true answers of all people and let the judge read them."""
        truths = [picture for person in people for picture in person.true_images(size_px)]
        reading = read_pictures(judge, truths, device)
        return cls(people, judge, identity_chances, attribute_chances, truths, reading, device)

    def mark(self, pictures: Sequence[Sequence[Image.Image]]) -> RowScores:
        """Score one row's pictures: person by person, ask by ask."""
        flat = [picture for of_person in pictures for picture in of_person]
        if len(flat) != len(self.truths):
            raise ValueError(f"{len(flat)} pictures for {len(self.truths)} asks: a row draws every ask once")
        reading = read_pictures(self.judge, flat, self.device)
        distances = feature_distance(reading.features, self.true_reading.features)
        differences = pixel_l1(flat, self.truths)
        scores, marked, start = [], [], 0
        for person in self.people:
            span = slice(start, start + len(person.asks))
            who, how = marked_pictures(person, reading.records[span])
            identity, attributes = self._shares(person, who, how)
            means = float(distances[span].mean()), float(differences[span].mean())
            scores.append((identity, attributes, harmonic(identity, attributes), *means))
            marked += who + how
            start = span.stop
        columns = np.asarray(scores).T  # (metrics, P)
        return RowScores(dict(zip(METRICS, columns, strict=True)), field_accuracy(marked))

    def _shares(self, person: Person, who: list[Marked], how: list[Marked]) -> tuple[float, float]:
        style = person.identity.style
        return rescaled_share(who, style, self.identity_chances), rescaled_share(how, style, self.attribute_chances)


def make_marker(
    people: Sequence[Person], judge: Judge, split: Split, size_px: int, device: str | torch.device | None = None
) -> Marker:
    """A marker for people of a split."""
    chances = {"identity_chances": identity_chances(split), "attribute_chances": attribute_chances()}
    return Marker.of(people, judge, **chances, size_px=size_px, device=device)


def marked_pictures(person: Person, read: Sequence[Record]) -> tuple[list[Marked], list[Marked]]:
    """One person's readings beside what counts: who the person is, and what each prompt asked for."""
    who = [Marked(record, person.identity.record()) for record in read]
    how = [Marked(record, ask.asked()) for record, ask in zip(read, person.asks, strict=True)]
    return who, how
