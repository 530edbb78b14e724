"""Run compiled graphs in a process of its own, which knows nothing of the networks that they were made of.

    python -m promptnet.export.graphs.reader JOB.json

Each item of the job names a graph, a file of inputs, and where the outputs go. Errors are a result, too.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from promptnet.export.graphs.runners import AotiGraph, OnnxGraph


def run_item(job: Mapping[str, Any], item: Mapping[str, Any]) -> None:
    """Write the outputs of one graph, for each set of inputs, and the names of its inputs."""
    folder = Path(job["folder"])
    if job["kind"] == "onnx":
        graph = OnnxGraph(folder, item["graph"])
    else:
        # The process that compiled the package asks, in the same command.
        graph = AotiGraph(folder, item["graph"], allow_native_code=True)
    for given, out in item["runs"]:
        values = {name: value.to(job["device"]) for name, value in load_file(given).items()}
        save_file({name: value.cpu().contiguous() for name, value in graph(values).items()}, out)
    Path(item["names"]).write_text(json.dumps(graph.inputs), "utf-8")


def main(path: Path) -> None:
    """Do a job."""
    job = json.loads(path.read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    for item in job["items"]:
        try:
            with torch.no_grad():
                run_item(job, item)
        except Exception as error:
            Path(f"{item['names']}.error").write_text(
                f"{type(error).__name__}: {' '.join(str(error).split())}", "utf-8"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
