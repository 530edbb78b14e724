"""One flow for every table: check, make what is missing, and score when all is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from promptnet.evaluation.papers.config import EditsConfig, PaperConfig, ProFusionConfig, SizesConfig, load_config
from promptnet.evaluation.papers.edits import Edits
from promptnet.evaluation.papers.image_store import ImageStore, Job
from promptnet.evaluation.papers.profusion import ProFusion
from promptnet.evaluation.papers.shards import Shard, local_device
from promptnet.evaluation.papers.sizes import Sizes
from promptnet.io.atomic import make_folder, write_whole
from promptnet.io.progress import counting_bar


class Table(Protocol):
    """A table of a paper."""

    def jobs(self) -> list[Job]:
        """Return all images of the table."""
        ...

    def prepare(self, shard: Shard) -> None:
        """Make what several jobs need."""
        ...

    def make(self, job: Job, places: Sequence[int], store: ImageStore) -> None:
        """Make and store some images of a job."""
        ...

    def score(self, store: ImageStore) -> dict[str, Any]:
        """Return all figures; every image is there."""
        ...

    def table(self, results: dict[str, Any]) -> str:
        """Return the figures as Markdown."""
        ...

    def sheet(self, store: ImageStore) -> Image.Image:
        """Return a contact sheet."""
        ...


def evaluate_paper(
    config: str | Path,
    *,
    rows: Sequence[str] | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    shard: Shard | None = None,
    device: str = "cpu",
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Make a paper's table: results.json, results.md and sheet.png in the config's folder.

    Everything that can be wrong is checked before the first image. Repeat the command to go on; several processes
    share the images by `shard` and the folder, and whichever finds all of them there writes the table.

    Args:
        config: a YAML file such as configs/evaluate/profusion.yaml.
        rows: of the table; None is the config's.
        out: the folder to write; None is the config's.
        limit: number of people, images or prompts, the first ones; None is the config's.
        shard: this process's part; None is all.
        device: where to compute.
        dry_run: check and count, and make nothing.

    Returns:
        The results; None for a dry run, and while images of other shards are missing.

    Raises:
        ValueError: something in the config, or an input, cannot be used.
    """
    given = {"rows": None if rows is None else tuple(rows), "out": None if out is None else str(out)}
    read = load_config(Path(config), limit=limit, **given)
    shard, folder = shard or Shard(), Path(read.out)
    table = make_table(read, local_device(device))
    jobs, store = table.jobs(), ImageStore(folder / "images")
    if dry_run:
        print(plan_of(jobs, store, shard))
        return None
    make_folder(folder)
    _make_missing(table, jobs, store, shard)
    left = sum(len(store.missing(job)) for job in jobs)
    if left:
        print(f"this shard is done; {left} images are left to the others, the last of which writes the table")
        return None
    results = table.score(store)
    text = table.table(results)
    write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n", public=True)
    write_whole(folder / "results.md", text + "\n", public=True)
    write_whole(folder / "sheet.png", table.sheet(store).save, public=True)
    print(text)
    return results


def make_table(config: PaperConfig, device: str) -> Table:
    """Return the table of a config, its inputs checked.

    Raises:
        ValueError: something in the config, or an input, cannot be used.
    """
    if isinstance(config, ProFusionConfig):
        return ProFusion(config, device)
    if isinstance(config, EditsConfig):
        return Edits(config, device)
    assert isinstance(config, SizesConfig)
    return Sizes(config, device)


def plan_of(jobs: Sequence[Job], store: ImageStore, shard: Shard) -> str:
    """Return how much there is to do."""
    own = [job for job in jobs if shard.has(job.unit)]
    rows: dict[str, int] = {}
    for job in own:
        rows[job.row] = rows.get(job.row, 0) + len(store.missing(job))
    lines = [f"{row}: {count} images to make" for row, count in rows.items()]
    return "\n".join([*lines, f"in all {sum(rows.values())} of {sum(len(job.names) for job in jobs)} images"])


def _make_missing(table: Table, jobs: Sequence[Job], store: ImageStore, shard: Shard) -> None:
    own = [job for job in jobs if shard.has(job.unit)]
    waiting = [job for job in own if store.missing(job)]
    if not waiting:
        return
    table.prepare(shard)
    with counting_bar("drawing", len(own), "rows", already=len(own) - len(waiting)) as advance:
        for job in waiting:
            table.make(job, store.missing(job), store)
            advance()
