"""`promptnet evaluate resolution`: other sizes."""

from __future__ import annotations

from pathlib import Path

from promptnet.commands._checks import check_counts, check_numbers
from promptnet.commands._loading import EMBEDDED, pick_device, quiet
from promptnet.commands._output import parse_size
from promptnet.commands.evaluate._checks import checked
from promptnet.evaluation.method_names import LADDER
from promptnet.inference.resolution.published_files import check_resolution


def resolution(
    people: int = 96,
    steps: int = 20,
    sizes: list[str] | None = None,
    methods: list[str] | None = None,
    subjects: int = 0,
    guidance_scale: float | None = None,
    out: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Compare methods at sizes that the base model was not trained for: distance to real renders, fields, heads.

    Args:
        people: number of validation people, one full caption each
        steps: denoising steps an image
        sizes: WIDTHxHEIGHT, or WIDTHxHEIGHT:IMAGES for fewer (null: 32x32 96x96 128x128 160x96 192x192:16 256x256:4)
        methods: direct, attention, redilation, +dispersion, +damping, auto (null: these); published:NAME, a YAML file
        subjects: number of customised people to generate at the trained size and at twice that
        guidance_scale: of the captions (null: that of the method prompt-only)
        out: a folder, made if it is missing, for results.json and a sheet a size; repeat the command to resume
        seed: makes the result reproducible
        workers: number of processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = checked(base, device, seed, [out], people=people, steps=steps, workers=workers)
    check_counts(0, subjects=subjects)
    check_numbers(guidance_scale=guidance_scale)
    for size in sizes or []:
        parse_size(size.partition(":")[0])
    for method in methods or []:
        if method not in LADDER:
            check_resolution(method)
    place = pick_device(device)
    quiet()
    from promptnet.evaluation.resolution.compare import evaluate_resolution

    evaluate_resolution(
        found,
        people=people,
        steps=steps,
        sizes=sizes,
        methods=methods,
        subjects=subjects,
        guidance_scale=guidance_scale,
        out=out,
        seed=seed,
        device=place,
        workers=workers,
    )
