"""Import everything that the GPU run imports, with no package but those it may count on.

Run by test_run.py in a process of its own: the machine has `GIVEN` and what these need, and the collected wheels.
"""

import importlib
import re
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
GIVEN = ("torch", "torchvision", "lightning", "transformers", "accelerate", "peft")
MODULES = (
    *("parts", "training", "training_runs", "models", "random_features"),
    *("sampling", "mixing", "pretrain_memory", "customize"),
    *("promptnet.training.cli", "promptnet.training.pretrain.stage", "promptnet.inference.resolution"),
    *("promptnet.inference.tuning.customize", "promptnet.inference.sampling.compiled", "tests.gpu.test_gpu"),
)


def normal(name: str) -> str:
    """The name of a distribution as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(name: str, found: set[str]) -> set[str]:
    """Add a distribution and, over and over, what it needs without extras."""
    if normal(name) in found:
        return found
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # of another platform
        return found
    found.add(normal(name))
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needs(requirement.name, found)
    return found


def collected() -> set[str]:
    """The distributions that wheels.sh names."""
    text = (ROOT / "benchmarks" / "gpu" / "wheels.sh").read_text()
    listed = text.partition('--dest "$FOLDER" \\\n')[2].partition("size_kb")[0]
    return {normal(re.split("[>=<]", word.strip('"'))[0]) for word in listed.replace("\\", " ").split()}


def allowed() -> set[str]:
    """All distributions that the machine has."""
    found: set[str] = set()
    for name in GIVEN:
        needs(name, found)
    return found | collected()


class Lean(PathFinder):
    """Finds nothing of other distributions."""

    hidden: set[str] = set()  # noqa: RUF012

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname.partition(".")[0] in cls.hidden else super().find_spec(fullname, path, target)


def hide_metadata(there: set[str]) -> None:
    """Have other distributions not be installed for those who ask for a version."""
    known = metadata.Distribution.from_name

    def from_name(name: str) -> Any:
        if normal(name) not in there:
            raise metadata.PackageNotFoundError(name)
        return known(name)

    metadata.Distribution.from_name = staticmethod(from_name)  # type: ignore[method-assign]


if __name__ == "__main__":
    there = allowed()
    hide_metadata(there)
    Lean.hidden = {
        package
        for package, owners in metadata.packages_distributions().items()
        if package not in ("promptnet", "tests") and not any(normal(owner) in there for owner in owners)
    }
    sys.meta_path = [Lean if finder is PathFinder else finder for finder in sys.meta_path]
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "gpu")]
    for module in MODULES:
        importlib.import_module(module)
    print(f"imported {len(MODULES)} modules with {len(Lean.hidden)} packages hidden")
