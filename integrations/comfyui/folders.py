"""Where files are: folders of ComfyUI's own models folder, so that a workflow can name nothing outside of them."""

import os
from pathlib import Path

import folder_paths

SUBJECTS = "promptnet_subjects"
WORDS = "promptnet_words"
EDITS = "promptnet_edits"
_BASES = "diffusers"
_FOLDERS = {SUBJECTS: "subjects", WORDS: "words", EDITS: "edits"}
_PRIVATE = (SUBJECTS, WORDS)


def register() -> None:
    """Tell ComfyUI of models/promptnet/..., made if they are missing; faces are their owner's alone."""
    for name, folder in _FOLDERS.items():
        path = Path(folder_paths.models_dir) / "promptnet" / folder
        path.mkdir(parents=True, exist_ok=True, mode=0o700 if name in _PRIVATE else 0o777)
        folder_paths.add_model_folder_path(name, str(path))


def files(name: str) -> list[str]:
    """Names of the files in one of these folders."""
    return [file for file in folder_paths.get_filename_list(name) if file.endswith(".safetensors")]


def file(name: str, chosen: str) -> Path:
    """The path of a file that was chosen.

    Raises:
        ValueError: there is none of that name in the folder.
    """
    if chosen not in files(name):
        raise ValueError(
            f"There is no file '{chosen}' in models/promptnet/{_FOLDERS[name]}: put it there, and press R."
        )
    return Path(folder_paths.get_full_path_or_raise(name, chosen))


def new_subject(name: str) -> Path:
    """The path of a subject to write.

    Raises:
        ValueError: the name is none of a file, or there is such a file.
    """
    stem = name.strip().removesuffix(".safetensors")
    if not stem or stem.startswith(".") or any(sign in stem for sign in '/\\:*?"<>|\0'):
        raise ValueError(f"name={name!r} must be the name of a file, without folders.")
    path = Path(folder_paths.get_folder_paths(SUBJECTS)[0]) / f"{stem}.safetensors"
    if path.exists():
        raise ValueError(f"There is a subject '{path.name}' already: choose another name, or delete the file.")
    return path


def bases() -> list[str]:
    """Base models: the folders in diffusers' layout below models/diffusers."""
    found = set()
    for root in folder_paths.get_folder_paths(_BASES):
        for folder, subfolders, names in os.walk(root, followlinks=True):
            if "model_index.json" in names:
                found.add(Path(folder).relative_to(root).as_posix())
                subfolders.clear()
    return sorted(found)


def base(chosen: str) -> Path:
    """The folder of a base model that was chosen.

    Raises:
        ValueError: there is none of that name.
    """
    if chosen not in bases():
        raise ValueError(
            f"There is no base model '{chosen}' in models/diffusers: put a folder in diffusers' layout there (with "
            "model_index.json and an encoder, as `promptnet export --to bundle` writes it), and press R."
        )
    roots = (Path(root) for root in folder_paths.get_folder_paths(_BASES))
    return next(root / chosen for root in roots if (root / chosen / "model_index.json").is_file())
