"""Scores of identity and attributes: pure functions on records.

Per person, over all of the person's images:

    identity   = rescaled(fraction of the identity fields that the judge predicts right)
    attributes = rescaled(fraction of the requested fields that the judge predicts right)
    rescaled(s) = (s - c) / (1 - c),  c = what the best constant guess that knows the style gets right
    harmonic   = 2 i a / (i + a) of the two, each clipped at 0

so 0 is guessing and 1 is everything right. A score can be below 0 (worse than the best constant guess); identity and
attributes are averaged unclipped, so that guessing averages to 0. The harmonic mean of a negative number is undefined,
so it clips at 0 first: a score no better than guessing on either side gives harmonic 0.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Record = Mapping[str, str]
Chances = Mapping[str, Mapping[str, float]]
"""Style to field to the fraction of records that the best constant guess gets right."""


@dataclass(frozen=True)
class Scored:
    """One scored image: the predicted fields, and the true values of the fields that count."""

    read: Record
    truth: Record

    def hits(self) -> list[bool]:
        """Return whether each field of `truth` was predicted right, in its order."""
        return [self.read[field] == value for field, value in self.truth.items()]


def best_constant_guess(records: Iterable[tuple[str, Record]]) -> dict[str, dict[str, float]]:
    """Return the accuracy of always guessing the most frequent value given the style, field by field.

    Args:
        records: (style, record) pairs; a record may hold any of the fields. The field "style" itself is always
            guessed right, which the same count gives.

    Returns:
        style -> field -> fraction guessed right.
    """
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for style, record in records:
        for field, value in record.items():
            seen[style, field][value] += 1
    chances: dict[str, dict[str, float]] = defaultdict(dict)
    for (style, field), values in seen.items():
        chances[style][field] = max(values.values()) / values.total()
    return dict(chances)


def rescaled(fraction: float, chance: float) -> float:
    """Return (fraction - chance) / (1 - chance): 0 is guessing, 1 is everything right, below 0 is worse than guessing.

    Raises:
        ValueError: `chance` is not in [0, 1): with only one possible value there is nothing to measure.
    """
    if not 0 <= chance < 1:
        raise ValueError(f"a guess that is right with chance {chance} leaves nothing to rescale: request other fields")
    return (fraction - chance) / (1 - chance)


def harmonic(identity: float, attributes: float) -> float:
    """Return the harmonic mean of two rescaled scores, each clipped at 0; 0 if either is."""
    first, second = max(identity, 0.0), max(attributes, 0.0)
    if first == 0 or second == 0:
        return 0.0
    return 2 * first * second / (first + second)


def rescaled_fraction(images: Sequence[Scored], style: str, chances: Chances) -> float:
    """Return the rescaled fraction of right fields over one person's images, each requested field counting once.

    Args:
        images: predicted and true fields, image by image (the fields may differ between them).
        style: the person's style.
        chances: of `best_constant_guess`.

    Raises:
        ValueError: no field counts, or a style or field has no entry in `chances`.
    """
    hits = [hit for image in images for hit in image.hits()]
    fields = [field for image in images for field in image.truth]
    if not hits:
        raise ValueError("no field to score: every prompt needs at least one field")
    missing = [field for field in fields if field not in chances.get(style, {})]
    if missing:
        raise ValueError(f"no best constant guess for {missing[0]!r} of style {style!r}")
    chance = sum(chances[style][field] for field in fields) / len(fields)
    return rescaled(sum(hits) / len(hits), chance)


def field_accuracy(images: Iterable[Scored]) -> dict[str, float]:
    """Return field to the fraction of images with a right prediction, over the images for which it counts."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for image in images:
        for field, hit in zip(image.truth, image.hits(), strict=True):
            hits[field].append(hit)
    return {field: sum(of_field) / len(of_field) for field, of_field in hits.items()}
