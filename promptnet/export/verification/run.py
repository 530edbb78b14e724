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
from promptnet.export.verification.probes import Probes, exact_outputs, static_outputs
from promptnet.export.verification.verdict import (
    Verdict,
    distances,
    key_problems,
    layer_problems,
    names_in_order,
    output_problems,
    write_verdicts,
)
from promptnet.inference.subject.lora import key_value_layers
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
) -> list[Verdict]:
    """Read exports back and write the verdicts beside them.

    Args:
        pipe: our pipeline, of the same base model, in float32.
        base: its folder or Hub id, from which the fresh process loads it.
        subject: whose exports they are.
        static: what was written.
        paths: format -> file or folder, as `write_files` returns them.
        prompt: that outputs are compared for.

    Returns:
        One for each format and reader; readers that are not installed are left out.

    Raises:
        ExportError: the fresh process failed as a whole.
    """
    static = static.stored_as("float32")  # what float16 files hold, exactly
    probes = Probes.of(pipe, subject, prompt)
    exact = exact_outputs(pipe, subject, probes)
    written = {has_lora: static_outputs(pipe, static, probes, with_lora=has_lora) for has_lora in (True, False)}
    with tempfile.TemporaryDirectory() as passing:
        items = _items(paths, Path(passing))
        _run_reader(_job(pipe, base, static, probes, items, Path(passing)), Path(passing))
        found = [_judge(pipe, item, static, written[FORMATS[item.format].has_lora], exact) for item in items]
    for name, path in paths.items():
        write_verdicts(path, [verdict for verdict in found if verdict.format == name])
    return found


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
    pipe: Any, base: str | Path, static: StaticSubject, probes: Probes, items: list[_Item], passing: Path
) -> dict[str, Any]:
    file = passing / "probes.safetensors"
    save_file({"x": probes.x.float().cpu().contiguous(), "timesteps": torch.tensor(probes.timesteps)}, file)
    return {
        "base": str(base),
        "sdxl": len(static.widths) == 2,
        "clip_skip": 1 if pipe.config.get("text_layer") == "penultimate" else None,
        "prompt": probes.prompt,
        "probes": str(file),
        "layers": names_in_order(static),
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


def _judge(pipe: Any, item: _Item, static: StaticSubject, expected: Tensor, exact: Tensor) -> Verdict:
    kind = FORMATS[item.format]
    about = {"format": item.format, "reader": item.reader, "file": item.path.name, "tolerance": kind.tolerance}
    try:
        content = kind.parse(item.path, list(key_value_layers(pipe.unet)))
    except ExportError as error:
        return Verdict(**about, problems=[str(error)])
    missing, unmatched, problems = key_problems(content, names_in_order(static) if kind.has_lora else [])
    problems += _content_problems(content, static, kind)
    keys = {"found": len(content.loras or content.words), "missing": missing, "unmatched": unmatched}
    if not item.out.is_file():
        error = Path(f"{item.out}.error").read_text("utf-8")
        return Verdict(**about, **keys, problems=[*problems, f"{item.reader} cannot load it: {error}"])
    read = load_file(item.out)
    matched, of_layers = layer_problems(read, static, kind.tolerance) if kind.has_lora else (len(content.words), [])
    return Verdict(
        **about,
        **keys,
        matched=matched,
        difference=distances(read["outputs"], expected),
        loss=distances(expected, exact),
        problems=[*problems, *of_layers, *output_problems(read, expected, kind)],
    )


def _content_problems(content: Content, static: StaticSubject, kind: FileFormat) -> list[str]:
    """Layers or words that our own parser finds other than they were written."""
    if not kind.has_lora:
        same = len(content.words) == len(static.widths) and all(
            torch.equal(found, part) for found, part in zip(content.words, static.word_parts(), strict=True)
        )
        return [] if same else ["words: the file has others than were written"]
    return [
        f"{name}: the file has another matrix than was written"
        for name, lora in content.loras.items()
        if name in static.loras and not _same(lora.matrix(), static.loras[name].matrix(), kind.tolerance)
    ]


def _same(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).norm() <= tolerance * expected.norm())
