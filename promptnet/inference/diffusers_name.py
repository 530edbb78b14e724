"""Lets `DiffusionPipeline.from_pretrained` load a saved `PromptNetPipeline` once `promptnet` was imported.

diffusers looks a pipeline's class up by its name in its own module. Nothing is imported for that before it is asked
for: the name is given to the module of diffusers when that is imported, and the class when the name is used.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

NAME = "PromptNetPipeline"


def give_name() -> None:
    """Give diffusers the pipeline's name, now or as soon as it is imported."""
    if "diffusers" in sys.modules:
        _extend(sys.modules["diffusers"])
    else:
        sys.meta_path.insert(0, _OnImport())


def _extend(module: Any) -> None:
    own = type(module)

    class Extended(own):
        def __getattr__(self, name: str) -> Any:
            if name == NAME:
                from promptnet.inference.pipeline import PromptNetPipeline

                return PromptNetPipeline
            return super().__getattr__(name)

    module.__class__ = Extended


class _OnImport(MetaPathFinder):
    """Finds diffusers as everybody else does, once, and extends it when it was loaded."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "diffusers":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        loader: Any = spec and spec.loader
        if loader is not None:
            load = loader.exec_module

            def load_and_extend(module: Any) -> None:
                load(module)
                _extend(sys.modules[fullname])

            loader.exec_module = load_and_extend
        return spec
