"""The models folder."""

import os
from pathlib import Path

models_dir = ""
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    folder_names_and_paths.setdefault(folder_name, ([], set()))[0].append(full_folder_path)


def get_folder_paths(folder_name: str) -> list[str]:
    return list(folder_names_and_paths[folder_name][0])


def get_filename_list(folder_name: str) -> list[str]:
    roots = [Path(folder) for folder in get_folder_paths(folder_name)]
    return sorted(path.relative_to(root).as_posix() for root in roots for path in root.rglob("*") if path.is_file())


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    found = next((os.path.join(root, filename) for root in get_folder_paths(folder_name)), "")
    if not os.path.isfile(found):
        raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")
    return found
