"""Write on cards what was measured of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from promptnet.datasets.avatars.person import World
from promptnet.evaluation.edits.methods import EIGHT, ORIGINAL
from promptnet.evaluation.edits.score import EditScores
from promptnet.evaluation.edits.tasks import Edit
from promptnet.inference.editing.card import EditCard
from promptnet.inference.editing.measured import Figures, Measured, condition

Scores = Mapping[str, Mapping[str, Mapping[str, EditScores]]]


def save_measured(card: EditCard, path: Path, edit: Edit, scores: Scores, world: World, frame: str) -> None:
    """Write a card with its figures of this run, beside those that the same card at this path has of others."""
    measured = {**card.measured, **measured_before(card, path), **measured_now(edit, scores, world, frame)}
    replace(card, measured=measured).save(path)


def measured_before(card: EditCard, path: Path) -> Measured:
    """Return the figures on the card at this path, if it is the same card."""
    if not path.is_file():
        return {}
    found = EditCard.load(path)
    same = (found.styled, found.fingerprint) == (card.styled, card.fingerprint)
    return found.measured if same and torch.equal(found.weights, card.weights) else {}


def measured_now(edit: Edit, scores: Scores, world: World, frame: str) -> Measured:
    """Return the card's figures on each source; images from seeds have no world and no frame."""
    found: dict[str, Figures] = {}
    for source, methods in scores.items():
        one = methods.get(EIGHT, {}).get(edit.name)
        if one is None or not one.asked.any():
            continue
        where: dict[str, Any] = {} if source == "seeds" else {"world": world, "frame": frame}
        found[condition(source, **where)] = figures(one, methods[ORIGINAL][""])
    return found


def figures(edited: EditScores, unedited: EditScores) -> Figures:
    """Return the means over the images that the edit is scored on."""
    asked = edited.asked
    means = {name: float(edited.values[name][asked].mean()) for name in ("change", "kept", "person")}
    means["unedited"] = float(unedited.values["person"][asked].mean())
    return {"images": float(asked.sum()), **{name: round(value, 4) for name, value in means.items()}}
