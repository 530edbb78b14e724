"""Scores of ProFusion's table: cosines of images with prompts by CLIP models, with references by face embedders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from promptnet.evaluation.papers.config import ProFusionConfig
from promptnet.evaluation.papers.published import published_clip
from promptnet.evaluation.papers.scorers import load_clips, load_faces
from promptnet.evaluation.papers.tables import interval_cell, markdown
from promptnet.metrics.bootstrap import interval
from promptnet.metrics.clip_models import prompt_similarity

Images = Sequence[Image.Image]


def score_rows(
    config: ProFusionConfig,
    base: Path,
    device: str,
    images: Mapping[str, Sequence[Images]],
    texts: Sequence[str],
    references: Sequence[Images],
) -> dict[str, Any]:
    """Return each row's figures with intervals over people.

    Args:
        config: of the table.
        base: folder of the base model.
        device: of the networks that score.
        images: row to the images of each person.
        texts: of those images, in plain words.
        references: of each person.
    """
    rows: dict[str, Any] = {row: {"clip": {}, "identity": {}} for row in images}
    for name, clip in load_clips(config, base, device).items():
        for row, of_people in images.items():
            values = [float(prompt_similarity(clip, texts, own).mean()) for own in of_people]
            figure = published_clip(row).get(name)
            rows[row]["clip"][name] = {**interval(values).record(), "published": figure}
    for name, scorer in load_faces(config, base, device).items():
        truths = [scorer.identity(own) for own in references]
        for row, of_people in images.items():
            values = [
                float((scorer.identity(own) @ truth.T).mean()) for own, truth in zip(of_people, truths, strict=True)
            ]
            rows[row]["identity"][name] = interval(values).record()
    return {
        "paper": "profusion",
        "people": len(references),
        "images_each": len(texts),
        "steps": config.steps,
        "seed": config.seed,
        "base": Path(config.base).name,
        "rows": rows,
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    first = next(iter(results["rows"].values()))
    head = ["", *(f"CLIP {name}" for name in first["clip"]), *(f"identity {name}" for name in first["identity"])]
    rows = [
        [row, *(interval_cell(found) for part in ("clip", "identity") for found in scores[part].values())]
        for row, scores in results["rows"].items()
    ]
    said = (
        f"{results['people']} people, {results['images_each']} images each, {results['steps']} steps on "
        f"{results['base']}; 95 % intervals over people. Behind a semicolon: as published, on Stable Diffusion 2 and "
        "the authors' people."
    )
    return f"{said}\n\n{markdown(head, rows)}"
