"""Records as numbers: places of words, exact colours, and all that an image shows."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch

from promptnet.datasets.avatars.colours import NAMES, lab, word_weights
from promptnet.datasets.avatars.person import COLOR_FIELDS, FIELDS, FRAMES, GEOMETRY, Avatar
from promptnet.datasets.avatars.styles import STYLES

COLOR_WORDS = tuple((field, name) for field in COLOR_FIELDS for name in NAMES[field])
"""All colour words, field by field: the order of `color_weights`."""

NUM_EXACT = 3 * len(COLOR_FIELDS) + len(GEOMETRY)
"""Length of `exact_of`."""


def codes_of(record: Mapping[str, str]) -> torch.Tensor:
    """Return a record as (10,) int64: the value's place in `FIELDS`, -1 for a field the record lacks."""
    return torch.tensor([values.index(record[field]) if field in record else -1 for field, values in FIELDS.items()])


def exact_of(avatar: Avatar) -> torch.Tensor:
    """Return what no word says as (19,) float32: CIELAB / 50 - 1 of the four colours, then the geometry."""
    colors = avatar.colors()
    labs = [value / 50 - (axis == 0) for field in COLOR_FIELDS for axis, value in enumerate(lab(colors[field]))]
    return torch.tensor([*labs, *avatar.identity.geometry])


def color_weights(avatar: Avatar) -> torch.Tensor:
    """Return how much of each colour word the exact colours are: (22,) float32, summing to one in each field."""
    colors = avatar.colors()
    return torch.tensor([weight for field in COLOR_FIELDS for weight in word_weights(field, colors[field]).values()])


@functools.cache
def _items() -> dict[tuple[str, ...], int]:
    """Everything about an avatar that is one of several: drawings and traits, each of its style, glasses, clothes."""
    items: list[tuple[str, ...]] = [("glasses", kind, frame) for kind in FIELDS["glasses"][:2] for frame in FRAMES]
    items += [("clothes", kind) for kind in FIELDS["clothes"]]
    for style, spec in STYLES.items():
        items.append((style,))
        for generated in (spec.hair, spec.beard, spec.expression):
            items += [
                (style, word, str(place)) for word, drawings in generated.items() for place in range(len(drawings))
            ]
        items += [(style, part, variant) for part, variants in spec.traits.items() for variant in variants]
    return {item: place for place, item in enumerate(items)}


def num_record_numbers() -> int:
    """Return the length of `record_of`."""
    return len(_items()) + NUM_EXACT


def record_of(avatar: Avatar) -> torch.Tensor:
    """Return everything that an image shows as one vector (D,) float32: items as 0 or 1, then `exact_of`."""
    who, how, items = avatar.identity, avatar.attributes, _items()
    hair, beard = who.drawings
    mine: list[tuple[str, ...]] = [(who.style,), (who.style, who.hair, str(hair)), ("clothes", how.clothes)]
    mine.append((who.style, how.expression, str(how.drawing)))
    if who.beard != "none":
        mine.append((who.style, who.beard, str(beard)))
    if how.glasses != "none":
        mine.append(("glasses", how.glasses, how.frame))
    mine += [(who.style, part, variant) for part, variant in who.traits.items()]
    vector = torch.zeros(num_record_numbers())
    vector[[items[item] for item in mine]] = 1.0
    vector[len(items) :] = exact_of(avatar)
    return vector
