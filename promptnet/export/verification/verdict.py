"""What is said of an export: which keys were read, how exact, what is lost, and whether it may be trusted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from promptnet.export.formats.base import Content, FileFormat
from promptnet.export.static_subject import StaticSubject
from promptnet.export.verification.probes import ROWS
from promptnet.export.verification.reader import layer_columns
from promptnet.inference.subject.lora import LoRALayer
from promptnet.io.atomic import write_whole

_SHOWN = 3


@dataclass(frozen=True)
class Verdict:
    """The result of reading one export with one reader.

    Args:
        format: of the export.
        reader: whose loader.
        file: its name.
        found: layers or words in the file.
        matched: of these, how many the reader used.
        missing: layers that it should have and has not.
        unmatched: keys that belong to nothing.
        tolerance: relative difference that is allowed.
        difference: of the U-Net's outputs to what was written, by row: relative, largest and mean absolute.
        loss: the same of what was written to the exact subject; it is reported, not judged.
        images: what the validation judge says of images drawn with it (`judged.Reading.of`); empty without a judge.
        problems: what is wrong; empty if nothing is.
    """

    format: str
    reader: str
    file: str
    found: int = 0
    matched: int = 0
    missing: Sequence[str] = ()
    unmatched: Sequence[str] = ()
    tolerance: float = 0.0
    difference: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    loss: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    images: Mapping[str, float] = field(default_factory=dict)
    problems: Sequence[str] = ()

    @property
    def is_good(self) -> bool:
        return not self.problems

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "is_good": self.is_good}


def distances(one: Tensor, other: Tensor) -> dict[str, dict[str, float]]:
    """How far outputs (N, 2, C, h, w) are from others, by row."""
    found = {}
    for place, row in enumerate(ROWS):
        difference = (one[:, place] - other[:, place]).double()
        found[row] = {
            "relative": float(difference.norm() / other[:, place].double().norm()),
            "max": float(difference.abs().max()),
            "mean": float(difference.abs().mean()),
        }
    return found


def key_problems(content: Content, expected: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Layers that are missing, keys that belong to nothing, and what to say of both."""
    missing = [name for name in expected if name not in content.loras]
    unmatched = list(content.strangers)
    problems = [f"{name}: the file does not have this layer" for name in missing]
    problems += [f"{key}: the base model has no such layer" for key in unmatched]
    return missing, unmatched, [*problems, *content.problems]


def layer_problems(
    read: Mapping[str, Tensor], static: StaticSubject, loras: Mapping[str, LoRALayer], tolerance: float
) -> tuple[int, list[str]]:
    """How many layers changed as they should, and what to say of the others.

    A layer's change is measured by its outputs for random inputs, against the plain layer's own.

    Args:
        read: the changes, by layer.
        static: of the job, whose layers have a place each.
        loras: what was written.
        tolerance: relative difference that is allowed.
    """
    matched, problems = 0, []
    places = {name: place for place, name in enumerate(names_in_order(static))}
    for name in sorted(loras):
        lora, change, before = loras[name], read[f"change.{name}"], read[f"before.{name}"]
        expected = layer_columns(places[name], lora.shape[1]) @ lora.A.mT @ lora.B.mT
        error = float((change - expected).norm() / (before + expected).norm())
        if error <= tolerance:
            matched += 1
        elif not change.any():
            problems.append(f"{name}: the reader left this layer as it was")
        else:
            problems.append(f"{name}: the layer's change is wrong by {error:.1e} of its outputs")
    return matched, problems


def names_in_order(static: StaticSubject) -> list[str]:
    """Layers in the order of a job: those of files and of a table."""
    return sorted({*static.loras, *(static.timed.loras if static.timed is not None else ())})


def output_problems(read: Mapping[str, Tensor], expected: Tensor, kind: FileFormat, *, has_lora: bool) -> list[str]:
    """What is wrong with the U-Net's outputs as a whole.

    Args:
        read: what the reader computed.
        expected: what was written does.
        kind: of the file.
        has_lora: whether a LoRA was written.
    """
    problems = []
    # The unconditional row alone does not tell: SDXL's may be zeros, of which keys and values of a LoRA are zero, too.
    if has_lora and not any(change.any() for name, change in read.items() if name.startswith("change.")):
        problems.append("no layer of the U-Net was changed: the file does nothing")
    for row, values in distances(read["outputs"], expected).items():
        if not values["relative"] <= kind.tolerance:
            problems.append(
                f"the {row} row differs by {values['relative']:.1e} of itself, more than {kind.tolerance:.0e}"
            )
    return problems


def verdict_path(artefact: Path) -> Path:
    """Where the verdicts on an export are written: beside it."""
    return artefact.with_name(f"{artefact.name}.verdict.json")


def write_verdicts(artefact: Path, verdicts: Sequence[Verdict]) -> None:
    """Write them whole."""
    records = [verdict.record() for verdict in verdicts]
    write_whole(verdict_path(artefact), json.dumps(records, indent=2) + "\n")


def summary(verdict: Verdict) -> str:
    """The problems in one line."""
    more = len(verdict.problems) - _SHOWN
    shown = "; ".join(verdict.problems[:_SHOWN])
    return shown + (f"; and {more} more" if more > 0 else "")
