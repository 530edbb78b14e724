"""A folder of compiled graphs, with a manifest that says what each takes and gives, and every file's hash."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from promptnet.export.errors import ExportError
from promptnet.export.graphs.compile import COMPILERS, MAX_BATCH, OPSET
from promptnet.export.graphs.parts import Graph
from promptnet.export.manifest import describe_files, differing_files
from promptnet.export.passport import licence_of, now
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.io.atomic import new_folder

MANIFEST = "graphs.json"
VERSION = 1


def write_graphs(
    pipe: Any,
    graphs: Sequence[Graph],
    kind: str,
    out: Path,
    *,
    base: str = "",
    on_graph: Callable[[], object] = lambda: None,
) -> Path:
    """Compile graphs into a new folder.

    Args:
        pipe: the pipeline that they are of.
        graphs: from `graphs_of`.
        kind: "onnx" or "aoti".
        out: the folder to write; it must not exist.
        base: folder or Hub id of the base model, for its name and licence.
        on_graph: called after each graph.

    Returns:
        The folder.

    Raises:
        ExportError: a network cannot be traced.
        ModuleNotFoundError: the extra `onnx` is not installed.
        ValueError: the folder exists, or its parent does not.
    """
    suffix, compile_graph = COMPILERS[kind]
    with new_folder(out) as part:
        for graph in graphs:
            compile_graph(graph, part / f"{graph.name}{suffix}")
            on_graph()
        manifest = {
            "version": VERSION,
            "kind": kind,
            "opset": OPSET if kind == "onnx" else None,
            "torch": torch.__version__,
            "device": str(pipe.unet.device),
            "max_batch": MAX_BATCH,
            "base": base,
            "licence": licence_of(base),
            "fingerprint": fingerprint(pipe),
            "date": now(),
            "graphs": {graph.name: _described(graph, suffix) for graph in graphs},
            "files": describe_files(part, MANIFEST),
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return out


def _described(graph: Graph, suffix: str) -> dict[str, Any]:
    inputs = {
        name: {"shape": ["batch", *each.shape], "dtype": str(each.dtype).removeprefix("torch.")}
        for name, each in graph.inputs.items()
    }
    return {"file": f"{graph.name}{suffix}", "inputs": inputs, "outputs": list(graph.outputs)}


def read_graphs(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of graphs.

    Raises:
        ExportError: there is none, or it cannot be read.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        return {
            name: found[name] for name in ("kind", "opset", "torch", "device", "base", "licence", "graphs", "files")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"'{folder}' is no folder of graphs: its {MANIFEST} cannot be read ({error}).") from error


def checked_graph(folder: Path, name: str, kind: str) -> tuple[Path, dict[str, Any]]:
    """The file of a graph and what the manifest says of it, after its files were compared with their hashes.

    Raises:
        ExportError: there is no such graph, or a file of it was altered.
    """
    manifest = read_graphs(folder)
    graphs = manifest["graphs"] if manifest["kind"] == kind else {}
    if name not in graphs:
        raise ExportError(f"'{folder}' has no {kind} graph {name!r}: it has {', '.join(graphs) or 'none'}.")
    file = graphs[name]["file"]
    own = {path: record for path, record in manifest["files"].items() if path in (file, f"{file}.data")}
    if file not in own or (wrong := differing_files(folder, own)):
        altered = ", ".join(wrong) if file in own else file
        raise ExportError(f"'{folder}' is not as it was written: {altered}. Export it again, or copy it again.")
    return folder / file, graphs[name]
