"""The text of a model card: what an encoder was trained on and how, what came out, and under which licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptnet.training.measures.metrics_file import values_of

MARK = "<!-- written by promptnet at the end of a training; the next training writes it anew -->"
HIGHER_IS_BETTER = ("val/identity", "val/prompt_fields", "val/prompt_clip")
LOWER_IS_BETTER = ("val/loss", "val/copy_paste")


@dataclass(frozen=True)
class CardText:
    """What only the owner of a run knows.

    Args:
        title: of the card.
        data: what the encoder was trained on, in a sentence or two.
        data_licence: and under which terms it was used.
        base_licence: of the base model, whose weights the encoder starts from.
        licence: of the encoder itself, an SPDX name where there is one.
        limits: what it cannot do and must not be used for.
    """

    title: str
    data: str
    data_licence: str
    base_licence: str
    licence: str
    limits: str


def model_card(
    text: CardText, base: str, recipe: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], curve: str | None
) -> str:
    """The card, Markdown with the front matter that model hubs read.

    Args:
        text: the owner's words.
        base: name of the base model.
        recipe: setting to value.
        entries: the lines of metrics.jsonl.
        curve: file name of the loss curve beside the card.
    """
    picture = [f"![Loss by step]({curve})", ""] if curve else []
    settings = [(name, f"`{value}`") for name, value in recipe.items()]
    parts = [
        *_front_matter(text, base),
        *(MARK, "", f"# {text.title}", ""),
        f"An image-to-word encoder (PromptNet, arXiv 2305.13579) for the base model `{base}`: it turns one picture of",
        "a person into the pseudo-word `S*` that the base model draws. To load it:",
        "`PromptNetPipeline.from_pretrained(base, promptnet=folder)`.",
        *("", "## Data", "", text.data, ""),
        *("## Recipe", "", *_table(("setting", "value"), settings), ""),
        *("## Figures", "", *_figures(entries), ""),
        *picture,
        *("## Licences", "", *_table(("of", "licence"), _licences(text)), ""),
        *("## Limits", "", text.limits, ""),
    ]
    return "\n".join(parts)


def _front_matter(text: CardText, base: str) -> list[str]:
    # In quotes: a licence or a name may hold what YAML takes for its own.
    values = {"license": text.licence, "base_model": base, "library_name": "diffusers", "pipeline_tag": "text-to-image"}
    lines = [f"{name}: {_quoted(value)}" for name, value in values.items()]
    return ["---", *lines, "tags:", "- promptnet", "- personalization", "---", ""]


def _quoted(text: str) -> str:
    return "'" + " ".join(text.split()).replace("'", "''") + "'"


def _licences(text: CardText) -> list[tuple[str, str]]:
    return [("this encoder", text.licence), ("the base model", text.base_licence), ("the data", text.data_licence)]


def _figures(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Last and best value of every validation figure; how fast it went, and what went wrong."""
    names = sorted({name for entry in entries for name in entry if name.startswith("val/")} - {"val/pictures_seconds"})
    rows = [(f"`{name}`", *_last_and_best(values_of(entries, name), name)) for name in names]
    lines = _table(("on held-out people", "last", "best (step)"), rows) if rows else ["Nothing was validated."]
    return [*lines, "", *_facts(entries)]


def _last_and_best(values: Sequence[tuple[int, float]], name: str) -> tuple[str, str]:
    last = f"{values[-1][1]:.4g}"
    if name in HIGHER_IS_BETTER + LOWER_IS_BETTER:
        step, best = (max if name in HIGHER_IS_BETTER else min)(values, key=lambda item: item[1])
        return last, f"{best:.4g} ({step})"
    return last, ""


def _facts(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    facts = []
    if entries:
        facts.append(f"- {entries[-1]['step']} optimiser steps")
    speeds = sorted(value for _, value in values_of(entries, "speed/images_per_s"))
    if speeds:
        facts.append(f"- {speeds[len(speeds) // 2]:.3g} images a second (median)")
    for name, words in (("gradients/nonfinite_steps", "steps left out for gradients that were not finite"),):
        counted = values_of(entries, name)
        if counted:
            facts.append(f"- {counted[-1][1]:.0f} {words}")
    return facts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in row) + " |" for row in cells]
