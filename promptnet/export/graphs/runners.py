"""Run compiled graphs: ONNX with onnxruntime, AOTInductor packages with torch."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.export.graphs.folder import checked_graph, read_graphs
from promptnet.export.manifest import differing_files


class OnnxGraph:
    """A graph that onnxruntime runs.

    Args:
        folder: that `promptnet export --to onnx` wrote.
        name: of the graph, such as "unet".
        providers: of onnxruntime.

    Raises:
        ExportError: there is no such graph, or its file was altered.
        ModuleNotFoundError: onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path, name: str, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
        path, self.about = checked_graph(Path(folder), name, "onnx")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))

    @property
    def inputs(self) -> list[str]:
        """The names of the file's own inputs."""
        return [each.name for each in self.session.get_inputs()]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs, on the CPU."""
        given = {name: value.detach().cpu().contiguous().numpy() for name, value in values.items()}
        found = self.session.run(self.about["outputs"], given)
        return {name: torch.from_numpy(value) for name, value in zip(self.about["outputs"], found, strict=True)}


class AotiGraph:
    """A graph that AOTInductor compiled: machine code of whoever wrote it.

    Args:
        folder: that `promptnet export --to aoti` wrote.
        name: of the graph, such as "unet".
        allow_native_code: must be True: the package runs with all rights of this process. Never take one from others.

    Raises:
        ExportError: native code was not allowed, the package was altered, or is for another version of torch.
    """

    def __init__(self, folder: str | Path, name: str, *, allow_native_code: bool = False) -> None:
        if allow_native_code is not True:
            raise ExportError(
                f"'{folder}' holds machine code, which can do all that you can. Give allow_native_code=True if you "
                "exported it yourself; never load a .pt2 package of somebody else."
            )
        path, self.about = checked_graph(Path(folder), name, "aoti")
        manifest = read_graphs(Path(folder))
        if manifest["torch"] != torch.__version__:
            raise ExportError(
                f"'{path}' is for torch {manifest['torch']}, and this is {torch.__version__}: export it again."
            )
        with tempfile.TemporaryDirectory() as own:  # what was checked is what is loaded
            copied = Path(shutil.copy(path, own))
            if differing_files(Path(own), {copied.name: manifest["files"][path.name]}):
                raise ExportError(f"'{path}' changed while it was read: export it again.")
            self.network: Any = torch._inductor.aoti_load_package(str(copied))

    @property
    def inputs(self) -> list[str]:
        """The names of inputs, in order; the package itself has none."""
        return list(self.about["inputs"])

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs, on the device that the graph was compiled for."""
        found = self.network(*(values[name] for name in self.inputs))
        found = found if isinstance(found, (list, tuple)) else [found]
        return dict(zip(self.about["outputs"], found, strict=True))
