"""FID, KID and CLIP similarity of images of other sizes, against real images and the model's own at its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from promptnet.evaluation.papers.config import SizesConfig
from promptnet.evaluation.papers.inputs import real_images
from promptnet.evaluation.papers.published import published_sizes
from promptnet.evaluation.papers.scorers import load_clips, load_features
from promptnet.evaluation.papers.tables import markdown, number_cell
from promptnet.evaluation.resolution.methods import Shape
from promptnet.metrics.clip_models import prompt_similarity
from promptnet.metrics.fid import Array, fid
from promptnet.metrics.kid import unpaired_kid

Images = Callable[[str], Sequence[Image.Image]]
DISTANCES = ("fid_r", "kid_r", "fid_b", "kid_b")


@dataclass(frozen=True)
class Drawn:
    """What was drawn, and how it is scored.

    Args:
        config: of the table.
        device: of the networks that score.
        bases: folder of each model.
        shapes: of each model.
        prompts: of the images.
    """

    config: SizesConfig
    device: str
    bases: Mapping[str, Path]
    shapes: Mapping[str, Shape]
    prompts: Sequence[str]


def score_models(sizes: Drawn, images: Images) -> dict[str, Any]:
    """Return the figures of every model, scale and row.

    Args:
        sizes: the table.
        images: "model/scale/row" to its images, in the order of the prompts.
    """
    config = sizes.config
    models = {model: _score_model(sizes, model, images) for model in sizes.bases}
    return {
        "paper": config.paper,
        "images": len(sizes.prompts),
        "features": dict(config.features),
        "steps": config.steps,
        "seed": config.seed,
        "models": models,
    }


def _score_model(sizes: Drawn, model: str, images: Images) -> dict[str, Any]:
    config, base = sizes.config, sizes.bases[model]
    network, clips = load_features(config.features, base, sizes.device), load_clips(config, base, sizes.device)
    size_px = sizes.shapes[model].trained_px
    real = network.features(list(real_images(config.real, size_px, config.seed)))
    own = network.features(images(f"{model}/trained/trained"))
    scales: dict[str, Any] = {}
    for scale in config.scales:
        scales[scale] = {}
        for row in config.rows:
            drawn = images(f"{model}/{scale}/{row}")
            figures = distances(network.features(drawn), real, own)
            clip = {n: float(prompt_similarity(c, sizes.prompts, drawn).mean()) for n, c in clips.items()}
            scales[scale][row] = {**figures, "clip": clip, "published": dict(published_sizes(model, scale, row))}
    return {"real": len(real), "scales": scales}


def distances(features: Array, real: Array, own: Array) -> dict[str, float]:
    """Return FID and KID against real images (r) and the model's own at its size (b)."""
    return {
        "fid_r": fid(features, real),
        "kid_r": unpaired_kid(features, real),
        "fid_b": fid(features, own),
        "kid_b": unpaired_kid(features, own),
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown: a table a model."""
    parts = [
        f"{results['images']} images a row, {results['steps']} steps, features of {_network(results['features'])}. r "
        "is against real images, b against the model's own at its size. Behind a semicolon: as published, with "
        "Inception's features of many more images. FID of few images is too high for every row: compare rows, not "
        "tables."
    ]
    for model, found in results["models"].items():
        parts.append(f"### {model}, {found['real']} real images\n\n{_model_table(found['scales'])}")
    return "\n\n".join(parts)


def _network(features: Mapping[str, str]) -> str:
    return "FID's Inception" if "inception" in features else f"the {features['judge']} judge"


def _model_table(scales: Mapping[str, Any]) -> str:
    first = next(iter(next(iter(scales.values())).values()))
    head = ["scale", "row", "FID r", "KID r", "FID b", "KID b", *(f"CLIP {name}" for name in first["clip"])]
    rows = []
    for scale, of_scale in scales.items():
        for row, found in of_scale.items():
            cells = [
                number_cell(found[name], found["published"].get(name), 2 if name.startswith("fid") else 3)
                for name in DISTANCES
            ]
            rows.append([scale, row, *cells, *(number_cell(value) for value in found["clip"].values())])
    return markdown(head, rows)
