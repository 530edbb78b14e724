"""Verify exports: the loaders that they are for read them back in a fresh process; the result is compared."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.export.formats.base import Content, FileFormat
from promptnet.export.registry import FORMATS
from promptnet.export.static_subject import StaticSubject
from promptnet.export.timed import TimedWords
from promptnet.export.verification.judged import Drawing, Reading
from promptnet.export.verification.probes import Probes, exact_outputs, static_outputs, timed_outputs
from promptnet.export.verification.verdict import (
    Verdict,
    distances,
    key_problems,
    layer_problems,
    names_in_order,
    output_problems,
    write_verdicts,
)
from promptnet.inference.subject.lora import LoRALayer, key_value_layers
from promptnet.inference.subject.subject import Subject

WORDS = "textual-inversion"
PROMPT = "a photo of S*"


def verify(
    pipe: Any,
    base: str | Path,
    subject: Subject,
    static: StaticSubject,
    paths: Mapping[str, Path],
    *,
    prompt: str = PROMPT,
    judge: Path | None = None,
) -> list[Verdict]:
    """Read exports back and write the verdicts beside them.

    Args:
        pipe: our pipeline, of the same base model, in float32.
        base: its folder or Hub id, from which the fresh process loads it.
        subject: whose exports they are.
        static: what was written.
        paths: format -> file or folder, as `write_files` returns them.
        prompt: that outputs are compared for.
        judge: folder of a validation judge, which reads images drawn with the exports and by the exact pipeline; None
            draws none.

    Returns:
        One for each format and reader; readers that are not installed are left out.

    Raises:
        ExportError: the fresh process failed as a whole.
    """
    static = static.stored_as("float32")  # what float16 files hold, exactly
    probes = Probes.of(pipe, subject, prompt)
    exact = exact_outputs(pipe, subject, probes)
    drawing = None if judge is None else Drawing.of(pipe, subject, prompt)
    reading = None if judge is None or drawing is None else Reading(judge, pipe, subject, drawing)
    written = {kind.name: _written(pipe, static, probes, kind) for kind in (FORMATS[name] for name in paths)}
    with tempfile.TemporaryDirectory() as passing:
        items = _items(paths, Path(passing))
        _run_reader(_job(pipe, base, static, probes, items, Path(passing), drawing), Path(passing))
        found = [_judge(pipe, item, static, written[item.format], exact, reading) for item in items]
    for name, path in paths.items():
        write_verdicts(path, [verdict for verdict in found if verdict.format == name])
    return found


def _written(pipe: Any, static: StaticSubject, probes: Probes, kind: FileFormat) -> Tensor:
    """What a file of some format does if it is read as it was written."""
    if not kind.timed:
        return static_outputs(pipe, static, probes, with_lora=kind.has_lora)
    return timed_outputs(pipe, _table_of(static), probes)


def _table_of(static: StaticSubject) -> TimedWords:
    if static.timed is None:
        raise ExportError("There is a word table's file, but no table that it was written from: give timed=.")
    return static.timed


@dataclass(frozen=True)
class _Item:
    """One export for one reader."""

    format: str
    reader: str
    path: Path
    words: Path | None
    out: Path

    def record(self) -> dict[str, Any]:
        texts = {"format": self.format, "reader": self.reader, "path": str(self.path.resolve()), "out": str(self.out)}
        return {**texts, "words": None if self.words is None else str(self.words.resolve())}


def _items(paths: Mapping[str, Path], passing: Path) -> list[_Item]:
    pairs = [(name, reader) for name in paths for reader in FORMATS[name].readers if _is_there(reader)]
    return [
        _Item(name, reader, paths[name], paths.get(WORDS), passing / f"{place}.safetensors")
        for place, (name, reader) in enumerate(pairs)
    ]


def _is_there(reader: str) -> bool:
    return find_spec(reader) is not None


def _job(
    pipe: Any,
    base: str | Path,
    static: StaticSubject,
    probes: Probes,
    items: list[_Item],
    passing: Path,
    drawing: Drawing | None,
) -> dict[str, Any]:
    file = passing / "probes.safetensors"
    latents = {} if drawing is None else {"latents": drawing.latents}
    save_file({"x": probes.x.float().cpu().contiguous(), "timesteps": torch.tensor(probes.timesteps), **latents}, file)
    return {
        "base": str(base),
        "sdxl": len(static.widths) == 2,
        "clip_skip": 1 if pipe.config.get("text_layer") == "penultimate" else None,
        "prompt": probes.prompt,
        "probes": str(file),
        "drawing": None if drawing is None else drawing.record(),
        "layers": names_in_order(static),
        "text_layer": pipe.config.get("text_layer"),
        "threads": torch.get_num_threads(),
        "items": [item.record() for item in items],
    }


def _run_reader(job: dict[str, Any], passing: Path) -> None:
    path = passing / "job.json"
    path.write_text(json.dumps(job), "utf-8")
    command = [sys.executable, "-m", "promptnet.export.verification.reader", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ExportError(f"The process that reads exports back failed: {' '.join(done.stderr.split())[-500:]}")


def _judge(
    pipe: Any, item: _Item, static: StaticSubject, expected: Tensor, exact: Tensor, reading: Reading | None
) -> Verdict:
    kind = FORMATS[item.format]
    about = {"format": item.format, "reader": item.reader, "file": item.path.name, "tolerance": kind.tolerance}
    try:
        content = kind.parse(item.path, list(key_value_layers(pipe.unet)))
    except ExportError as error:
        return Verdict(**about, problems=[str(error)])
    loras = _loras_of(static, kind)
    missing, unmatched, problems = key_problems(content, sorted(loras))
    problems += _content_problems(content, static, kind)
    keys = {"found": len(content.loras or content.words), "missing": missing, "unmatched": unmatched}
    if not item.out.is_file():
        error = Path(f"{item.out}.error").read_text("utf-8")
        return Verdict(**about, **keys, problems=[*problems, f"{item.reader} cannot load it: {error}"])
    read = load_file(item.out)
    matched, of_layers = layer_problems(read, static, loras, kind.tolerance)
    return Verdict(
        **about,
        **keys,
        matched=matched if loras else len(content.words),
        difference=distances(read["outputs"], expected),
        loss=distances(expected, exact),
        images={} if reading is None else reading.of(read["images"]),
        problems=[*problems, *of_layers, *output_problems(read, expected, kind, has_lora=bool(loras))],
    )


def _loras_of(static: StaticSubject, kind: FileFormat) -> Mapping[str, LoRALayer]:
    """The LoRA that a file of some format has."""
    if kind.timed:
        return _table_of(static).loras
    return static.loras if kind.has_lora else {}


def _content_problems(content: Content, static: StaticSubject, kind: FileFormat) -> list[str]:
    """Layers or words that our own parser finds other than they were written."""
    problems = []
    if kind.timed or not kind.has_lora:
        words = _table_of(static).parts() if kind.timed else static.word_parts()
        same = len(content.words) == len(words) and all(map(torch.equal, content.words, words))
        problems += [] if same else ["words: the file has others than were written"]
    loras = _loras_of(static, kind)
    return problems + [
        f"{name}: the file has another matrix than was written"
        for name, lora in content.loras.items()
        if name in loras and not _same(lora.matrix(), loras[name].matrix(), kind.tolerance)
    ]


def _same(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).norm() <= tolerance * expected.norm())
