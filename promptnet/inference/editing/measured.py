"""What is known of an edit: how often it appears and how much it keeps, by what it was measured on.

A card may carry such figures; `promptnet evaluate edits --cards` writes them. Who edits is then told before what the
edit is known to break.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

Figures = Mapping[str, float]
Measured = Mapping[str, Figures]
"""Condition ("renders, style, shift": images, world, frame) to `FIGURES`."""

FIGURES = ("images", "change", "kept", "person", "unedited")
"""Images counted; shares of them that show the edit, of the other fields that stay, of the fields of identity that
stay, and of the latter in the images before the edit."""
SEEDS, SUBJECTS, RENDERS = "seeds", "subjects", "renders"
"""Images that a pipeline draws with an edit, those that show a subject, and images edited through inversion."""
TOLERATED_LOSS = 0.1
"""The share of who somebody is that an edit may lose before it counts as breaking the person."""


def condition(source: str, world: str = "known", frame: str = "plain") -> str:
    """Return the name of what was measured; the known world and the plain frame go without saying."""
    return ", ".join([source, *([world] if world != "known" else []), *([frame] if frame != "plain" else [])])


def is_measured(value: Any) -> bool:
    """Whether a value is figures by condition."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    return all(isinstance(found, Mapping) and _are_figures(found) for found in value.values())


def _are_figures(found: Figures) -> bool:
    numbers = all(isinstance(number, (int, float)) and math.isfinite(number) for number in found.values())
    return set(found) == set(FIGURES) and numbers and all(0 <= found[name] <= 1 for name in FIGURES[1:])


def breaks(found: Figures) -> bool:
    """Whether an edit loses more of who somebody is than is tolerated."""
    return found["unedited"] - found["person"] > TOLERATED_LOSS


def losses(measured: Measured, source: str) -> dict[str, Figures]:
    """Return the conditions of a source in which an edit breaks the person, with their figures."""
    return {name: found for name, found in measured.items() if name.split(",")[0] == source and breaks(found)}


def warn_of_losses(cards: Iterable[Any], source: str) -> None:
    """Log a warning for each card that is known to break the person in images of this source."""
    for card in cards:
        if found := losses(card.measured, source):
            logger.warning(
                "The edit %r is known to change who is shown: of what says who somebody is, it keeps %s. A lower "
                "strength keeps more, and so does a mask where the edit has a place.",
                card.styled,
                "; ".join(said(name, figures) for name, figures in found.items()),
            )


def said(name: str, found: Figures) -> str:
    """Return one condition's figures in words."""
    return f"{found['person']:.0%} in {found['images']:.0f} {name} ({found['unedited']:.0%} without the edit)"
