"""`promptnet evaluate two-people` and `identity`: several people, and whoever is in images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from promptnet.commands._checks import check_files
from promptnet.commands._loading import EMBEDDED, find_base, pick_device, quiet
from promptnet.commands._output import check_output
from promptnet.commands.evaluate._checks import checked
from promptnet.io.atomic import write_whole


def two_people(
    pairs: int = 32,
    steps: int = 20,
    split: Literal["validation", "test"] = "test",
    out: Path | None = None,
    seed: int = 0,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Measure how much two people in one image blend, with regions and with one prompt for both.

    Args:
        pairs: number of pairs of people
        steps: denoising steps an image
        split: test for figures to report; validation for choices
        out: a folder, made if it is missing, for results.json, results.md and sheet.png; repeat the command to resume
        seed: makes the result reproducible
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = checked(base, device, seed, [out], pairs=pairs, steps=steps)
    place = pick_device(device)
    quiet()
    from promptnet.evaluation.two_people.compare import evaluate_two_people
    from promptnet.io.progress import counting_bar

    with counting_bar("two people", pairs, "pairs") as advance:
        evaluate_two_people(
            found, pairs=pairs, steps=steps, split=split, out=out, seed=seed, device=place, on_pair=lambda *_: advance()
        )


def identity(
    a: Path,
    b: Path,
    /,
    embedder: Literal["face", "judge"] = "face",
    face_weights: Path | None = None,
    base: str = EMBEDDED,
    out: Path | None = None,
) -> None:
    """Compare who is in images: the cosine of each image in A with each in B.

    Args:
        a: an image, or a folder of images
        b: the same
        embedder: face for photographs, facenet-pytorch's InceptionResnetV1; judge for avatars
        face_weights: of the face embedder, a .safetensors file or the published .pt (null: where facenet-pytorch keeps
            them; nothing is downloaded)
        base: base model, beside which the judge of avatars lies
        out: a JSON file to write
    """
    for path in (a, b):
        if not path.exists():
            raise FileNotFoundError(f"'{path}' does not exist: check its name")
    check_files("face-weights", [face_weights])
    if out is not None:
        check_output(out, (".json",), overwrite=True)
    from promptnet.evaluation.identity import compare_identities, load_scorer

    found_base = Path(find_base(base)) if embedder == "judge" else None
    found = compare_identities(a, b, load_scorer(embedder, face_weights, found_base))
    for name, row in zip(found.ones, found.values.tolist(), strict=True):
        for other, value in zip(found.others, row, strict=True):
            print(f"{name}  {other}  {value:.4f}")
    print(f"mean {float(found.values.mean()):.4f} over {found.values.numel()} pairs")
    if out is not None:
        write_whole(out, (json.dumps(found.record(), indent=1) + "\n").encode(), public=True)
