"""Scores of edits by CLIP models and face embedders: change along the prompts, and what stays as it was.

With f a CLIP's unit features of an image and t of a text,

    direction = cos(f(edited) - f(original), t(to) - t(from))
    preserved = cos(f(edited), f(original))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from promptnet.evaluation.papers.config import EditsConfig
from promptnet.evaluation.papers.scorers import load_clips, load_faces
from promptnet.evaluation.papers.tables import interval_cell, markdown
from promptnet.metrics.bootstrap import interval
from promptnet.metrics.clip_models import ClipModel, direction_similarity
from promptnet.metrics.identity import IdentityScorer
from promptnet.metrics.judge import Array, pixel_l1

Images = Sequence[Image.Image]
ORIGINAL = "original"


def score_edits(config: EditsConfig, base: Path, device: str, images: Callable[[str], Images]) -> dict[str, Any]:
    """Return each row's figures, of each edit and over all, with intervals over images.

    Args:
        config: of the table.
        base: folder of the base model.
        device: of the networks that score.
        images: "edit/row" to its images.
    """
    clips, faces = load_clips(config, base, device), load_faces(config, base, device)
    values: dict[str, dict[str, dict[str, Array]]] = {row: {} for row in config.rows}
    for edit in config.edits:
        before = images(f"{edit['name']}/{ORIGINAL}")
        for row in config.rows:
            after = images(f"{edit['name']}/{row}")
            values[row][edit["name"]] = _measures(clips, faces, before, after, (edit["from"], edit["to"]))
    return {
        "paper": "disentanglement",
        "images": len(images(f"{config.edits[0]['name']}/{ORIGINAL}")),
        "source": "seeds" if config.images is None else "images",
        "steps": config.steps,
        "seed": config.seed,
        "learned_on": config.learned_on,
        "rows": {row: _record(of_row) for row, of_row in values.items()},
    }


def _measures(
    clips: Mapping[str, ClipModel],
    faces: Mapping[str, IdentityScorer],
    before: Images,
    after: Images,
    texts: tuple[str, str],
) -> dict[str, Array]:
    """Return each measure of each image, (N,)."""
    found: dict[str, Array] = {}
    for name, clip in clips.items():
        features = clip.images(before), clip.images(after)
        found[f"direction {name}"] = direction_similarity(clip, *features, texts).double().numpy()
        found[f"preserved {name}"] = (features[0] * features[1]).sum(dim=1).double().numpy()
    for name, scorer in faces.items():
        found[f"identity {name}"] = (scorer.identity(before) * scorer.identity(after)).sum(dim=1).double().numpy()
    found["pixel_l1"] = pixel_l1(after, before)
    return found


def _record(of_row: Mapping[str, Mapping[str, Array]]) -> dict[str, Any]:
    measures = next(iter(of_row.values()))
    mean = {name: np.mean([values[name] for values in of_row.values()], axis=0) for name in measures}
    return {
        "all": {name: interval(values).record() for name, values in mean.items()},
        "edits": {
            edit: {name: interval(found).record() for name, found in values.items()} for edit, values in of_row.items()
        },
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    first = next(iter(results["rows"].values()))
    rows = [[row, *(interval_cell(value) for value in found["all"].values())] for row, found in results["rows"].items()]
    said = (
        f"{results['images']} images ({results['source']}) and {len(first['edits'])} edits, {results['steps']} steps; "
        "means over edits, 95 % intervals over images. The paper prints no figures of these measures. pixel_l1 is the "
        "mean difference from the original: lower keeps more."
    )
    return f"{said}\n\n{markdown(['', *first['all']], rows)}"
