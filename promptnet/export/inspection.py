"""What a file is, and whether it is intact: subjects, edit cards, exports, model folders, PNGs with our metadata."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open

from promptnet.export.errors import ExportError
from promptnet.export.passport import PREFIX, is_intact
from promptnet.export.tensor_file import read_tensors
from promptnet.inference.editing.card import KIND as CARD_KIND
from promptnet.inference.editing.card import EditCard
from promptnet.inference.subject.subject import KIND as SUBJECT_KIND
from promptnet.inference.subject.subject import Subject

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_HIDDEN = ("content_hash", "fingerprint")


@dataclass(frozen=True)
class Found:
    """What a file is.

    Args:
        kind: in words.
        is_intact: whether its content is what was written; None where nothing in it tells.
        about: further facts, none of them a face.
    """

    kind: str
    is_intact: bool | None
    about: Mapping[str, Any] = field(default_factory=dict)


def inspect_file(path: Path) -> Found:
    """Say what a file or folder of ours is.

    Raises:
        ExportError: it does not exist, or is nothing of ours.
    """
    if not path.exists():
        raise ExportError(f"'{path}' does not exist: check the path.")
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() in _IMAGES:
        return _image(path)
    return _tensor_file(path)


def _tensor_file(path: Path) -> Found:
    try:
        with safe_open(path, "pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ExportError(
            f"'{path}' is no safetensors file, or was cut short ({error}). Copy it again, or make it again."
        ) from error
    if SUBJECT_KIND.key in metadata:
        return _subject(path)
    if CARD_KIND.key in metadata:
        return _card(path)
    if f"{PREFIX}format" in metadata:
        return _export(path)
    if (path.parent / "config.json").is_file():
        return _folder(path.parent)
    raise ExportError(f"'{path}' is a safetensors file, but nothing that promptnet writes.")


def _subject(path: Path) -> Found:
    subject = _loaded(lambda: Subject.load(path))
    if isinstance(subject, Found):
        return Found("subject", False, subject.about)
    about = {"class word": subject.class_word, "reference images": subject.num_references}
    return Found("subject", True, {**about, "LoRA layers": len(subject.loras), "base model": subject.base or "unknown"})


def _card(path: Path) -> Found:
    card = _loaded(lambda: EditCard.load(path))
    if isinstance(card, Found):
        return Found("edit card", False, card.about)
    about = {"neutral": card.neutral, "styled": card.styled, "steps": card.num_steps, "scheduler": card.scheduler}
    measured = {f"measured on {name}": _figures(found) for name, found in card.measured.items()}
    return Found("edit card", True, {**about, "base model": card.base or "unknown", **measured})


def _figures(found: Mapping[str, float]) -> str:
    """What was measured of an edit, in words."""
    shown = f"{found['images']:.0f} images: shown in {found['change']:.0%}, other fields kept {found['kept']:.0%}"
    return f"{shown}, who it is {found['person']:.0%} ({found['unedited']:.0%} unedited)"


def _loaded(load: Callable[[], Any]) -> Any:
    """What is loaded, or why it cannot be."""
    try:
        return load()
    except ValueError as error:
        return Found("", False, {"problem": str(error)})


def _export(path: Path) -> Found:
    tensors, metadata = read_tensors(path)
    own = {name.removeprefix(PREFIX): text for name, text in metadata.items() if name.startswith(PREFIX)}
    about = {name: text for name, text in own.items() if text and name not in (*_HIDDEN, "format", "version")}
    return Found(f"export, {own['format']}", is_intact(metadata, tensors), {**about, "tensors": len(tensors)})


def _folder(path: Path) -> Found:
    for name, describe in (
        ("bundle.json", _bundle),
        ("graphs.json", _graphs),
        ("model_index.json", _pipeline),
        ("manifest.json", _checkpoint),
        ("config.json", _network),
    ):
        if (path / name).is_file():
            return describe(path, _json(path / name))
    for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"):
        if (path / name).is_file():
            return _tensor_file(path / name)
    raise ExportError(f"'{path}' is a folder, but nothing that promptnet writes.")


def _bundle(path: Path, manifest: dict[str, Any]) -> Found:
    from promptnet.export.manifest import differing_files

    wrong = differing_files(path, manifest["files"])
    about = {"base model": manifest["base"], "files": len(manifest["files"]), "licence": manifest["licence"]}
    return Found("bundle", not wrong, about if not wrong else {**about, "problem": f"altered: {', '.join(wrong)}"})


def _graphs(path: Path, manifest: dict[str, Any]) -> Found:
    from promptnet.export.manifest import differing_files

    wrong = differing_files(path, manifest["files"])
    about = {"graphs": ", ".join(manifest["graphs"]), "base model": manifest["base"] or "unknown"}
    about |= {"torch": manifest["torch"], "device": manifest["device"], "licence": manifest["licence"]}
    if wrong:
        about["problem"] = f"altered: {', '.join(wrong)}"
    return Found(f"graphs, {manifest['kind']}", not wrong, about)


def _pipeline(path: Path, index: dict[str, Any]) -> Found:
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    return Found("base model", None, {"pipeline": index.get("_class_name", "unknown"), "parts": ", ".join(parts)})


def _checkpoint(path: Path, manifest: dict[str, Any]) -> Found:
    from promptnet.export.manifest import differing_files

    files = manifest.get("files")
    if not isinstance(files, dict):
        return Found("checkpoint", None, {"entries": ", ".join(sorted(manifest))})
    wrong = differing_files(path, files)
    return Found("checkpoint", not wrong, {"files": len(files), **({"problem": f"altered: {wrong}"} if wrong else {})})


def _network(path: Path, config: dict[str, Any]) -> Found:
    return Found("network", None, {"class": config.get("_class_name") or config.get("architectures", ["unknown"])[0]})


def _image(path: Path) -> Found:
    """A PNG's texts; its chunks carry check sums."""
    try:
        with Image.open(path) as image:
            texts = {str(name): str(text) for name, text in image.info.items() if str(name).startswith("promptnet")}
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:  # PIL's own for a broken PNG is a SyntaxError
        return Found("image", False, {"problem": str(error)})
    if not texts:
        raise ExportError(f"'{path}' is an image without metadata of promptnet.")
    return Found("image", True, texts)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise ExportError(f"'{path}' is no JSON ({error}): copy it again, or make it again.") from error
