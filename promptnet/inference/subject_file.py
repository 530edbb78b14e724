"""A subject on disk: for its owner's eyes from the first byte on, and checked in full when it is read."""

from pathlib import Path

from torch import Tensor

from promptnet.inference.deltas import LowRankDelta
from promptnet.inference.subject import FORMAT_VERSION, Subject, SubjectError
from promptnet.io.artifacts import FileKind, Tensors, Texts

_KEY = "promptnet.subject"
KIND = FileKind(
    key=_KEY,
    version=FORMAT_VERSION,
    max_bytes=256 * 1024 * 1024,
    error=SubjectError,
    title="Subject file",
    noun="a subject",
    maker="promptnet customize",
    again="customise again",
)


def save_subject(subject: Subject, path: Path) -> None:
    """See `Subject.save`."""
    KIND.save(path, subject.texts(), subject.tensors())


def load_subject(path: Path) -> Subject:
    """See `Subject.load`."""
    return KIND.load(path, _assembled)


def _assembled(texts: Texts, tensors: Tensors) -> Subject:
    own = {name: tensors.pop(name) for name in ("reference_latents", "vision_states", "weights")}
    return Subject(**own, **texts, deltas=_paired(tensors))


def _paired(tensors: dict[str, Tensor]) -> dict[str, LowRankDelta]:
    """deltas.<name>.down and deltas.<name>.up, each with its other half and nothing else."""
    deltas = {}
    for key in [key for key in tensors if key.startswith("deltas.") and key.endswith(".down")]:
        name = key.removeprefix("deltas.").removesuffix(".down")
        deltas[name] = LowRankDelta(down=tensors.pop(key), up=tensors.pop(f"deltas.{name}.up"))
    if tensors:
        raise SubjectError(f"it has tensors that do not belong to a subject: {', '.join(sorted(tensors))}.")
    return deltas
