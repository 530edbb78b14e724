"""Exact measures: shares of fields, and what no word says, that is colours, shapes and geometry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from promptnet.datasets.avatars.colours import lab
from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, COLOR_FIELDS, FIELDS, IDENTITY_FIELDS, Avatar
from promptnet.evaluation.harness.tasks import Person
from promptnet.metrics.bootstrap import interval
from promptnet.metrics.color_difference import Array, ciede2000
from promptnet.metrics.judge import ExactJudge, look_at
from promptnet.models.judge import JUDGE_SIZE_PX

FRACTIONS = ("identity", "attributes", "preservation")
"""Higher is better: shares of fields that the judge reads as the true answer has them."""
SHARES = (*FRACTIONS, "harmonic")
"""Higher is better: the fractions, and the harmonic mean of attributes and of everything that is a person's."""
ERRORS = ("error_skin", "error_hair_color", "error_clothes_color", "shape", "geometry")
"""Lower is better: CIEDE2000, and distances of shape and geometry."""
_IDENTITY_ERRORS = ("error_skin", "error_hair_color", "shape", "geometry")


@dataclass(frozen=True)
class ExactScorer:
    """What stays the same for all methods: the people, the judge, and the shapes that it sees in the true images."""

    people: Sequence[Person]
    judge: ExactJudge
    truths: Sequence[Avatar]
    true_shapes: torch.Tensor
    device: str | torch.device | None = None

    @classmethod
    def of(cls, people: Sequence[Person], judge: ExactJudge, device: str | torch.device | None = None) -> "ExactScorer":
        """Render the true answers of all people and make the scorer."""
        truths = [truth for person in people for truth in person.truths()]
        images = [image for person in people for image in person.true_images(JUDGE_SIZE_PX)]
        return cls(people, judge, truths, look_at(judge, images, device).shape, device)

    def score(self, images: Sequence[Image.Image]) -> dict[str, Array]:
        """Score images against the true answers: each measure one number an image, NaN where it does not apply.

        - `identity`: share of the identity's fields read right; `attributes`: of the fields that the prompt names;
          `preservation`: of the attributes that it leaves out, which stay as in the reference.
        - `error_<field>`: CIEDE2000 of the colour read to the exact one; `lightness_skin`: its signed error in L*.
        - `shape`: 1 - cosine to the true rendering in the judge's space of shapes; `geometry`: mean error of geometry.

        Args:
            images: of any size, person by person, prompt by prompt.
        """
        read = look_at(self.judge, images, self.device)
        exact = read.exact.double().numpy()
        hits = _hits({field: read.words[field].argmax(1).tolist() for field in FIELDS}, self.truths)
        geometry = [_geometry_error(row, truth) for row, truth in zip(exact, self.truths, strict=True)]
        shape = (1 - (read.shape * self.true_shapes).sum(1)).clamp_min(0).tolist()  # rounding must not go below
        figures = {**self._shares(hits), **_color_errors(exact, self.truths), "shape": shape, "geometry": geometry}
        return {name: np.array(values, np.float64) for name, values in figures.items()}

    def _shares(self, hits: Sequence[Mapping[str, bool]]) -> dict[str, list[float]]:
        named = [set(eval_prompt.fields) for person in self.people for eval_prompt in person.eval_prompts]
        pairs = list(zip(hits, named, strict=True))
        return {
            "identity": [_share(of_image, IDENTITY_FIELDS) for of_image in hits],
            "attributes": [_share(of_image, fields) for of_image, fields in pairs],
            "preservation": [_share(of_image, set(ATTRIBUTE_FIELDS) - fields) for of_image, fields in pairs],
        }


def _hits(codes: Mapping[str, Sequence[int]], truths: Sequence[Avatar]) -> list[dict[str, bool]]:
    """Return, for each image, which fields are read as the true answer has them."""
    return [
        {field: FIELDS[field][codes[field][place]] == word for field, word in truth.record().items()}
        for place, truth in enumerate(truths)
    ]


def _share(hits: Mapping[str, bool], fields: Any) -> float:
    return float(np.mean([hits[field] for field in fields])) if fields else float("nan")


def _color_errors(exact: Array, truths: Sequence[Avatar]) -> dict[str, list[float]]:
    """Return the error of every colour, and the signed error of the skin's lightness, of readings (N, E)."""
    found = {}
    for place, field in enumerate(COLOR_FIELDS):
        seen = (exact[:, 3 * place : 3 * place + 3] + [1.0, 0.0, 0.0]) * 50
        asked = np.array([lab(truth.colors()[field]) for truth in truths])
        found[f"error_{field}"] = ciede2000(seen, asked).tolist()
        if field == "skin":
            found["lightness_skin"] = (seen[:, 0] - asked[:, 0]).tolist()
    return found


def _geometry_error(read: Array, truth: Avatar) -> float:
    return float(np.abs(read[3 * len(COLOR_FIELDS) :] - truth.identity.geometry).mean())


def a_person(values: Array, num_prompts: int) -> Array:
    """Return the mean over each person's images, (P,), leaving out those to which the measure does not apply."""
    of_people = values.reshape(-1, num_prompts)
    counts = (~np.isnan(of_people)).sum(axis=1)
    return np.where(counts == 0, np.nan, np.nansum(of_people, axis=1) / np.maximum(counts, 1))


def share_of_way(values: Array, nothing: Array, truth: Array) -> dict[str, float] | None:
    """Return how much of the way from the prompt alone to the truth a method's error goes, with its interval.

    None where the prompt alone is no worse than the truth.

    Args:
        values: errors, one a person (P,).
        nothing: of the prompt alone, for the same people.
        truth: of the true rendering.
    """
    whole = float(nothing.mean() - truth.mean())
    return interval((nothing - values) / whole).record() if whole > 0 else None


def harmonic(figures: Mapping[str, Array], nothing: Mapping[str, Array], truth: Mapping[str, Array]) -> Array:
    """Return, for each person, the harmonic mean of attributes and everything of identity (P,).

    Everything is the mean of the share of right identity fields and of the ways from the prompt alone to the truth in
    skin and hair colour, shape and geometry, each cut to 0 to 1.

    Args:
        figures: of a method, one number a person.
        nothing: of the prompt alone.
        truth: of the true rendering.
    """
    ways = [_way(figures[name], nothing[name], truth[name]) for name in _IDENTITY_ERRORS]
    everything = np.mean([figures["identity"], *ways], axis=0)
    total = everything + figures["attributes"]
    return np.where(total == 0, 0.0, 2 * everything * figures["attributes"] / np.where(total == 0, 1.0, total))


def _way(values: Array, nothing: Array, truth: Array) -> Array:
    whole = float(nothing.mean() - truth.mean())
    return np.clip((nothing.mean() - values) / whole, 0.0, 1.0) if whole > 0 else np.full_like(values, np.nan)
