"""`promptnet convert`: encoders from the published layout to ours, and back."""

from __future__ import annotations

from pathlib import Path

from promptnet.commands._loading import quiet
from promptnet.io.atomic import check_folder


def convert(source: Path, out: Path, keep_residual_heads: bool = False, to_published: bool = False) -> None:
    """Turn a published encoder (safetensors or torch pickle) into a folder that this package loads.

    Args:
        source: the encoder's folder, with its config.json
        out: the folder to write; its parent must exist, itself must not
        keep_residual_heads: keep heads that no computation uses
        to_published: convert in the other direction, from a folder of this package to one that the published code reads
    """
    if to_published and keep_residual_heads:
        raise ValueError("--keep-residual-heads is for reading the published layout: leave it out with --to-published")
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"--source '{source}' has no config.json: give the encoder's own folder")
    if out.exists():
        raise ValueError(f"{out} exists already. Choose another name or remove it first.")
    check_folder(out)
    quiet()
    from promptnet.models.convert import convert_from_published, convert_to_published

    if to_published:
        convert_to_published(source, out)
    else:
        convert_from_published(source, out, use_res=keep_residual_heads)
    print(out)
