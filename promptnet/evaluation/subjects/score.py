"""From images to the scores of one method: every person's scores, and the accuracy field by field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from promptnet.datasets.avatars.person import World
from promptnet.evaluation.harness.chances import attribute_chances, identity_chances
from promptnet.evaluation.harness.tasks import Person, Split
from promptnet.metrics.judge import Array, Judge, Prediction, feature_distance, pixel_l1, read_images
from promptnet.metrics.scores import Chances, Record, Scored, field_accuracy, harmonic, rescaled_fraction

METRICS = ("identity", "attributes", "harmonic", "preservation", "distance", "pixel_l1")


@dataclass(frozen=True)
class MethodScores:
    """Scores of one method."""

    people: Mapping[str, Array]
    """Metric to one number a person, (P,), in the order of the people."""
    fields: Mapping[str, float]
    """Field to the fraction of images, among those for which it counts, in which the judge predicted it right."""


@dataclass(frozen=True)
class Scorer:
    """What stays the same for all methods: the people, the judge, and its predictions for the true images."""

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
        """Render the true answers of all people and make the scorer."""
        truths = [image for person in people for image in person.true_images(size_px)]
        prediction = read_images(judge, truths, device)
        return cls(people, judge, identity_chances, attribute_chances, truths, prediction, device)

    def score(self, images: Sequence[Sequence[Image.Image]]) -> MethodScores:
        """Score one method's images: person by person, prompt by prompt."""
        flat = [image for of_person in images for image in of_person]
        if len(flat) != len(self.truths):
            raise ValueError(
                f"{len(flat)} images for {len(self.truths)} prompts: a method needs one image for every prompt"
            )
        prediction = read_images(self.judge, flat, self.device)
        distances = feature_distance(prediction.features, self.true_prediction.features)
        differences = pixel_l1(flat, self.truths)
        scores, scored, start = [], [], 0
        for person in self.people:
            span = slice(start, start + len(person.eval_prompts))
            who, how, kept = scored_images(person, prediction.records[span])
            identity, attributes, preservation = self._fractions(person, who, how, kept)
            means = float(distances[span].mean()), float(differences[span].mean())
            scores.append((identity, attributes, harmonic(identity, attributes), preservation, *means))
            scored += who + how
            start = span.stop
        columns = np.asarray(scores).T  # (metrics, P)
        return MethodScores(dict(zip(METRICS, columns, strict=True)), field_accuracy(scored))

    def _fractions(
        self, person: Person, who: list[Scored], how: list[Scored], kept: list[Scored]
    ) -> tuple[float, float, float]:
        style = person.identity.style
        attributes, preservation = (rescaled_fraction(each, style, self.attribute_chances) for each in (how, kept))
        return rescaled_fraction(who, style, self.identity_chances), attributes, preservation


def make_scorer(
    people: Sequence[Person],
    judge: Judge,
    split: Split,
    size_px: int,
    device: str | torch.device | None = None,
    world: World = "known",
) -> Scorer:
    """Return a scorer for people of a split and world."""
    chances = {"identity_chances": identity_chances(split, world), "attribute_chances": attribute_chances()}
    return Scorer.of(people, judge, **chances, size_px=size_px, device=device)


def scored_images(person: Person, read: Sequence[Record]) -> tuple[list[Scored], list[Scored], list[Scored]]:
    """Pair one person's predictions with the fields that count.

    Returns:
        For the person's identity, for each prompt's fields, and for the attributes that each prompt leaves out.
    """
    pairs = list(zip(read, person.eval_prompts, strict=True))
    who = [Scored(record, person.identity.record()) for record in read]
    how = [Scored(record, eval_prompt.asked()) for record, eval_prompt in pairs]
    return who, how, [Scored(record, eval_prompt.kept()) for record, eval_prompt in pairs]
