"""Compile a graph: `torch.export` traces it with a batch of any size; ONNX and AOTInductor are made of the result."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from promptnet.export.errors import ExportError
from promptnet.export.graphs.parts import Graph

OPSET = 18
EXPORTED_BATCH = 2
# diffusers' upsampling takes another way from 64 rows on, which a graph cannot.
MAX_BATCH = 63


def traced(graph: Graph) -> Any:
    """A graph as `torch.export` has it, for 1 to `MAX_BATCH` rows.

    Raises:
        ExportError: the network does something that depends on its values, or on the number of rows.
    """
    values = tuple(graph.drawn(EXPORTED_BATCH, seed=0).values())
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    shapes = {"values": tuple({0: batch} for _ in values)}
    try:
        with torch.no_grad():
            return torch.export.export(graph.module().eval(), values, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"{graph.name} cannot be traced: {' '.join(str(error).split())[:500]}") from error


def to_onnx(graph: Graph, path: Path) -> None:
    """Write a graph as ONNX; weights of large networks lie beside it, in `PATH.data`.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: ONNX needs pip install 'promptnet[onnx]'") from error
    program = torch.onnx.export(
        traced(graph),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
    )
    assert program is not None
    _name_batch(program.model)
    program.save(str(path))


def _name_batch(model: Any) -> None:
    """Call the first axis of inputs and outputs `batch` in place of torch's own symbol."""
    symbols = {str(value.shape[0]) for value in [*model.graph.inputs, *model.graph.outputs]}
    values = [*model.graph.inputs, *model.graph.outputs, *(v for node in model.graph for v in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if str(size) in symbols and not isinstance(size, int):
                value.shape[axis] = "batch"


def to_aoti(graph: Graph, path: Path) -> None:
    """Write a graph as machine code for this torch version and the network's device, by AOTInductor."""
    from torch import _inductor

    _inductor.aoti_compile_and_package(traced(graph), package_path=str(path))


COMPILERS: Mapping[str, tuple[str, Callable[[Graph, Path], None]]] = {
    "onnx": (".onnx", to_onnx),
    "aoti": (".pt2", to_aoti),
}
"""Format -> suffix of its files, and how one is made."""
