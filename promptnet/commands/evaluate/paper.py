"""`promptnet evaluate paper`: a paper's table on your base model and people."""

from __future__ import annotations

from pathlib import Path

from promptnet.commands._checks import check_device, check_files
from promptnet.commands._loading import pick_device, quiet
from promptnet.io.atomic import check_folder


def paper(
    config: Path,
    /,
    rows: list[str] | None = None,
    out: Path | None = None,
    limit: int | None = None,
    shard: str | None = None,
    dry_run: bool = False,
    device: str = "auto",
) -> None:
    """Make a paper's table on your base model and people, beside the published figures.

    Args:
        config: a YAML file such as configs/evaluate/profusion.yaml; it names base model, prompts, people and networks
        rows: rows of the table (null: the config's)
        out: a folder, made if it is missing, for images, results.json, results.md and sheet.png (null: the config's);
            repeat the command to resume
        limit: number of people, images or prompts to take, the first ones (null: the config's)
        shard: I/N, the part of this process out of N that share the folder (null: what torchrun or accelerate say)
        dry_run: check everything and count what there is to do
        device: auto, cpu, cuda, ...
    """
    check_files("config", [config])
    check_device(device)
    from promptnet.evaluation.papers.config import load_config
    from promptnet.evaluation.papers.shards import choose_shard

    part = choose_shard(shard)
    names = {"rows": None if rows is None else tuple(rows), "out": None if out is None else str(out)}
    found = load_config(config, limit=limit, **names)
    check_folder(found.out)
    place = pick_device(device)
    quiet()
    from promptnet.evaluation.papers.run import evaluate_paper

    evaluate_paper(config, rows=rows, out=out, limit=limit, shard=part, device=place, dry_run=dry_run)
