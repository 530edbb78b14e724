"""Verify compiled graphs: a fresh process runs them on random inputs, with more rows than they were exported with."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.export.graphs.compile import EXPORTED_BATCH
from promptnet.export.graphs.folder import read_graphs
from promptnet.export.graphs.parts import Graph
from promptnet.export.verification.verdict import Verdict, write_verdicts

TOLERANCE = 1e-5
VERIFIED_BATCH = EXPORTED_BATCH + 1
SEED = 1
READERS = {"onnx": "onnxruntime", "aoti": "torch"}

Values = Mapping[str, Tensor]


def verify_graphs(graphs: Sequence[Graph], folder: Path) -> list[Verdict]:
    """Compare every graph of a folder with the eager network, and write the verdicts beside the folder.

    Each is run with random LoRA layers and with none. A graph on which these make no difference is wrong.

    Args:
        graphs: what the folder was written from, float32.
        folder: as `write_graphs` returns it.

    Raises:
        ExportError: the fresh process failed as a whole.
    """
    kind = read_graphs(folder)["kind"]
    device = str(next(graphs[0].network.parameters()).device)
    with tempfile.TemporaryDirectory() as passing:
        items = [_item(graph, Path(passing)) for graph in graphs]
        job = {"folder": str(folder.resolve()), "kind": kind, "device": device, "threads": torch.get_num_threads()}
        _run_reader({**job, "items": items}, Path(passing))
        found = [_judge(graph, kind, item) for graph, item in zip(graphs, items, strict=True)]
    write_verdicts(folder, found)
    return found


def without_loras(graph: Graph, values: Values) -> dict[str, Tensor]:
    """The same inputs with zeros for LoRA layers."""
    return {name: value * 0 if name in graph.loras else value for name, value in values.items()}


def _given(graph: Graph) -> list[dict[str, Tensor]]:
    values = graph.drawn(VERIFIED_BATCH, SEED)
    return [values, without_loras(graph, values)] if graph.loras else [values]


def _item(graph: Graph, passing: Path) -> dict[str, Any]:
    runs = []
    for place, values in enumerate(_given(graph)):
        given, out = (str(passing / f"{graph.name}-{place}-{what}.safetensors") for what in ("in", "out"))
        save_file({name: value.cpu().contiguous() for name, value in values.items()}, given)
        runs.append((given, out))
    return {"graph": graph.name, "runs": runs, "names": str(passing / f"{graph.name}.json")}


def _run_reader(job: dict[str, Any], passing: Path) -> None:
    path = passing / "job.json"
    path.write_text(json.dumps(job), "utf-8")
    command = [sys.executable, "-m", "promptnet.export.graphs.reader", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ExportError(f"The process that runs graphs failed: {' '.join(done.stderr.split())[-500:]}")


def _judge(graph: Graph, kind: str, item: Mapping[str, Any]) -> Verdict:
    about = {"format": kind, "reader": READERS[kind], "file": graph.name, "tolerance": TOLERANCE}
    if not Path(item["names"]).is_file():
        error = Path(f"{item['names']}.error").read_text("utf-8")
        return Verdict(**about, problems=[f"{graph.name}: {READERS[kind]} cannot run it: {error}"])
    names = json.loads(Path(item["names"]).read_text("utf-8"))
    keys = {
        "found": len(names),
        "matched": len(set(names) & set(graph.inputs)),
        "missing": sorted(set(graph.inputs) - set(names)),
        "unmatched": sorted(set(names) - set(graph.inputs)),
    }
    problems = [f"{graph.name}: the graph has no input {name}" for name in keys["missing"]]
    problems += [f"{graph.name}: the graph has an input {name} of its own" for name in keys["unmatched"]]
    found = [load_file(out) for _, out in item["runs"]]
    expected = [{name: value.cpu() for name, value in graph(values).items()} for values in _given(graph)]
    difference = _differences(found, expected)
    for name, values in difference.items():
        if not values["relative"] <= TOLERANCE:
            problems.append(f"{graph.name}: {name} differs by {values['relative']:.1e} of itself from the network's")
    if graph.loras and all(torch.equal(found[0][name], found[1][name]) for name in graph.outputs):
        problems.append(f"{graph.name}: LoRA layers make no difference")
    return Verdict(**about, **keys, difference=difference, problems=problems)


def _differences(found: Sequence[Values], expected: Sequence[Values]) -> dict[str, dict[str, float]]:
    """The largest differences of each output over the runs."""
    records: dict[str, dict[str, float]] = {}
    for name in expected[0]:
        pairs = [(one[name].double(), other[name].double()) for one, other in zip(found, expected, strict=True)]
        records[name] = {
            "relative": max(float((one - other).norm() / other.norm()) for one, other in pairs),
            "max": max(float((one - other).abs().max()) for one, other in pairs),
            "mean": max(float((one - other).abs().mean()) for one, other in pairs),
        }
    return records
