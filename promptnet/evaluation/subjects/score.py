"""From images to one row of the comparison: every person's scores, and the accuracy field by field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from promptnet.datasets.avatars.render import Split
from promptnet.evaluation.harness.tasks import Person, attribute_chances, identity_chances
from promptnet.metrics.judge import Array, Judge, Prediction, feature_distance, pixel_l1, read_images
from promptnet.metrics.scores import Chances, Record, Scored, field_accuracy, harmonic, rescaled_share

METRICS = ("identity", "attributes", "harmonic", "distance", "pixel_l1")


@dataclass(frozen=True)
class MethodScores:
    """A row's scores."""

    people: Mapping[str, Array]
    """Metric to one number a person, (P,), in the order of the people."""
    fields: Mapping[str, float]
    """Field to the share of images, among those for which it counts, in which the judge read it right."""


@dataclass(frozen=True)
class Scorer:
    """Everything that stays the same from row to row: the people, the judge, and what it makes of the true images."""

    people: Sequence[Person]
    judge: Judge
    identity_chances: Chances
    attribute_chances: Chances
    truths: Sequence[Image.Image]
    true_prediction: Prediction
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
    ) -> "Scorer":
        """Draw the true answers of all people and let the judge read them."""
        truths = [image for person in people for image in person.true_images(size_px)]
        prediction = read_images(judge, truths, device)
        return cls(people, judge, identity_chances, attribute_chances, truths, prediction, device)

    def mark(self, images: Sequence[Sequence[Image.Image]]) -> MethodScores:
        """Score one row's images: person by person, ask by ask."""
        flat = [image for of_person in images for image in of_person]
        if len(flat) != len(self.truths):
            raise ValueError(f"{len(flat)} images for {len(self.truths)} asks: a row draws every ask once")
        prediction = read_images(self.judge, flat, self.device)
        distances = feature_distance(prediction.features, self.true_prediction.features)
        differences = pixel_l1(flat, self.truths)
        scores, scored, start = [], [], 0
        for person in self.people:
            span = slice(start, start + len(person.eval_prompts))
            who, how = scored_images(person, prediction.records[span])
            identity, attributes = self._shares(person, who, how)
            means = float(distances[span].mean()), float(differences[span].mean())
            scores.append((identity, attributes, harmonic(identity, attributes), *means))
            scored += who + how
            start = span.stop
        columns = np.asarray(scores).T  # (metrics, P)
        return MethodScores(dict(zip(METRICS, columns, strict=True)), field_accuracy(scored))

    def _shares(self, person: Person, who: list[Scored], how: list[Scored]) -> tuple[float, float]:
        style = person.identity.style
        return rescaled_share(who, style, self.identity_chances), rescaled_share(how, style, self.attribute_chances)


def make_scorer(
    people: Sequence[Person], judge: Judge, split: Split, size_px: int, device: str | torch.device | None = None
) -> Scorer:
    """A marker for people of a split."""
    chances = {"identity_chances": identity_chances(split), "attribute_chances": attribute_chances()}
    return Scorer.of(people, judge, **chances, size_px=size_px, device=device)


def scored_images(person: Person, read: Sequence[Record]) -> tuple[list[Scored], list[Scored]]:
    """One person's readings beside what counts: who the person is, and what each prompt asked for."""
    who = [Scored(record, person.identity.record()) for record in read]
    how = [Scored(record, eval_prompt.asked()) for record, eval_prompt in zip(read, person.eval_prompts, strict=True)]
    return who, how
