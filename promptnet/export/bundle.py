"""A bundle: one folder from which `PromptNetPipeline.from_pretrained` loads all that an inference service needs.

Diffusers' layout, with edit cards, licences and a manifest of hashes beside it. The base model's weights are copied, or
named: then their fingerprint says which they must be.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptnet.export.errors import ExportError
from promptnet.export.manifest import describe_files, differing_files
from promptnet.export.passport import licence_of, now
from promptnet.inference.editing.card import EditCard
from promptnet.inference.subject.fingerprint import differing, fingerprint
from promptnet.io.atomic import new_folder
from promptnet.io.configs import drop_sources

MANIFEST = "bundle.json"
CARDS = "edits"
LICENCES = "licences"
# What PromptNet brings; the rest is the base model's own.
OWN_PARTS = ("promptnet", "image_encoder", "feature_extractor")
VERSION = 1


def write_bundle(pipe: Any, out: Path, *, base: str, cards: Sequence[Path] = (), with_base: bool = True) -> Path:
    """Write a pipeline as a bundle.

    Args:
        pipe: a PromptNetPipeline with an encoder.
        out: the folder to write; it must not exist.
        base: folder or Hub id of the base model, for its licence, and its name in a bundle by reference.
        cards: edit cards to take along.
        with_base: copy the base model's weights; otherwise the bundle names it.

    Returns:
        The folder.

    Raises:
        ExportError: the pipeline has no encoder, or a card is of another base model.
        ValueError: the folder exists, or its parent does not.
    """
    missing = [name for name in OWN_PARTS if getattr(pipe, name, None) is None]
    if missing:
        raise ExportError(f"A bundle needs the encoder: this pipeline has no {', '.join(missing)}.")
    for card in cards:
        EditCard.load(card).check(pipe)
    with new_folder(out) as part:
        _save_parts(pipe, part, with_base)
        for card in cards:
            (part / CARDS).mkdir(exist_ok=True)
            shutil.copyfile(card, part / CARDS / card.name)
        drop_sources(part)
        _copy_licences(Path(base), part)
        manifest = {
            "version": VERSION,
            "base": base if not with_base else Path(base).name,
            "with_base": with_base,
            "fingerprint": fingerprint(pipe),
            "licence": licence_of(base),
            "date": now(),
            "files": describe_files(part, MANIFEST),
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", "utf-8")
    return out


def _save_parts(pipe: Any, folder: Path, with_base: bool) -> None:
    if with_base:
        pipe.save_pretrained(folder, safe_serialization=True)
        return
    for name in OWN_PARTS:
        getattr(pipe, name).save_pretrained(folder / name)
    config = {
        name: value for name, value in pipe.config.items() if name in ("sampling", "tuning", "text_layer") and value
    }
    (folder / "pipeline.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")


def _copy_licences(base: Path, folder: Path) -> None:
    """Licence texts and the model's card, which say what may be done with it."""
    found = [path for pattern in ("LICENSE*", "LICENCE*", "NOTICE*", "README.md") for path in base.glob(pattern)]
    for path in found if base.is_dir() else []:
        (folder / LICENCES).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / LICENCES / path.name)


def load_bundle(folder: str | Path, *, base: str | None = None, check: bool = True, **options: Any) -> Any:
    """Load the pipeline of a bundle, with its base model's weights from elsewhere if it does not hold them.

    Args:
        folder: of the bundle.
        base: folder or Hub id of the base model, in place of the one that the bundle names.
        check: compare every file with the manifest first.
        options: of `PromptNetPipeline.from_pretrained`.

    Raises:
        ExportError: it is no bundle, a file was altered, or the base model has other weights.
    """
    from promptnet.inference.pipeline import PromptNetPipeline

    folder = Path(folder)
    manifest = read_manifest(folder)
    if check and (wrong := differing_files(folder, manifest["files"])):
        raise ExportError(f"The bundle '{folder}' is not as it was written: {', '.join(wrong)}. Copy it again.")
    if manifest["with_base"]:
        return PromptNetPipeline.from_pretrained(folder, **options)
    pipe = PromptNetPipeline.from_pretrained(base or manifest["base"], **{**_own_parts(folder), **options})
    names = differing(manifest["fingerprint"], fingerprint(pipe))
    if names:
        raise ExportError(
            f"The bundle '{folder}' was made with another base model: the weights of {', '.join(names)} differ. "
            "Give base=... the model that it was made with."
        )
    return pipe


def _own_parts(folder: Path) -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionModel

    from promptnet.models.promptnet import PromptNetModel

    return {
        "promptnet": PromptNetModel.from_pretrained(folder / "promptnet"),
        "image_encoder": CLIPVisionModel.from_pretrained(folder / "image_encoder", use_safetensors=True),
        "feature_extractor": CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
        **json.loads((folder / "pipeline.json").read_text("utf-8")),
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle.

    Raises:
        ExportError: there is none, or it cannot be read.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        return {name: found[name] for name in ("version", "base", "with_base", "fingerprint", "licence", "files")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"'{folder}' is no bundle: its {MANIFEST} cannot be read ({error}).") from error


def find_encoder(run: Path) -> Path:
    """The encoder's folder that a training run exported, or the run itself if it is one.

    Raises:
        ExportError: there is none.
    """
    places = [run, run / "promptnet", run / "export", run / "export" / "promptnet", run / "encoder"]
    for place in places:
        if (place / "config.json").is_file() and (place / "diffusion_pytorch_model.safetensors").is_file():
            return place
    raise ExportError(
        f"'{run}' holds no exported encoder (config.json and diffusion_pytorch_model.safetensors): let the training "
        "finish, or give the folder that its export_dir names."
    )
