"""`promptnet batch`: the subjects of a table, in this process or on every machine of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.commands._checks import check_device, check_seed
from promptnet.commands._loading import EMBEDDED, check_model, pick_device, quiet
from promptnet.inference.subject.class_word import check_class_word
from promptnet.inference.tuning.config import TuningConfig

if TYPE_CHECKING:
    from promptnet.inference.tuning.bulk import BulkConfig

_NEEDS = "promptnet batch needs the extra: pip install 'promptnet[ray]'"
_COLUMNS = ("image", "class_word", "out")


def batch(
    subjects: Path,
    workers: int = 1,
    gpus_each: float = 0.0,
    cpus_each: float = 1.0,
    address: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    base: str = EMBEDDED,
    overwrite: bool = False,
    allow_foreign: bool = False,
    device: str = "auto",
    threads: int = 0,
) -> None:
    """Make the subject files of a table; what is there already is left out, so repeat the command to resume.

    Args:
        subjects: Parquet table with the columns image (a path), class_word and out (a .safetensors path); paths are
            relative to the table's folder
        workers: processes; 1 is this one without Ray, more are Ray's, on whichever machines it has
        gpus_each: GPUs of a Ray worker
        cpus_each: CPU cores of a Ray worker
        address: of a Ray cluster that runs (null: one is started on this machine)
        steps: tuning steps; 0 keeps the encoder's output as it is (null: the pipeline's default)
        seed: of every row
        base: base model, a folder in diffusers layout or a Hub id; all machines must have it
        overwrite: replace files that exist
        allow_foreign: take images that the encoder does not know
        device: auto, cpu, cuda, ...
        threads: of torch in each worker (0: torch's own choice)
    """
    check_device(device)
    check_seed(seed)
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    TuningConfig().replaced({"steps": steps})
    found = check_model(base, device, subjects=True).name
    rows = [row for row in read_rows(subjects) if overwrite or not Path(row["out"]).exists()]
    if not rows:
        print("nothing to do: every subject is there")
        return
    quiet()
    from promptnet.inference.tuning.bulk import BulkConfig

    name = found if not Path(found).exists() else str(Path(found).resolve())
    config = BulkConfig(name, pick_device(device) if workers == 1 else device, steps, seed, threads, allow_foreign)
    done = (
        _in_this_process(rows, config)
        if workers == 1
        else _with_ray(rows, config, workers, address, cpus_each, gpus_each)
    )
    report(done)


def report(done: list[dict[str, str]]) -> None:
    """Say what was made.

    Raises:
        ValueError: some were not; names the first.
    """
    failed = [row for row in done if row["error"]]
    print(f"{len(done) - len(failed)} subjects made, {len(failed)} failed")
    for row in failed:
        print(f"{row['out']}: {row['error']}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(done)} subjects were not made; the first: {failed[0]['error']}")


def read_rows(table: Path) -> list[dict[str, str]]:
    """Read and check a table, before anything is loaded; paths become absolute.

    Raises:
        ValueError: a column, a class word or an output's name is wrong, or two rows write one file.
        FileNotFoundError: the table or an image does not exist.
    """
    try:
        from pyarrow import ArrowInvalid, parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_NEEDS) from error
    if not table.is_file():
        raise FileNotFoundError(f"table '{table}' does not exist")
    try:
        read = parquet.read_table(table)
    except ArrowInvalid as error:
        raise ValueError(f"table '{table}' is no Parquet file") from error
    if missing := [name for name in _COLUMNS if name not in read.column_names]:
        raise ValueError(f"table '{table}' has no column '{missing[0]}': it needs {', '.join(_COLUMNS)}")
    folder = table.resolve().parent
    rows = [_checked(row, place, folder) for place, row in enumerate(read.select(_COLUMNS).to_pylist())]
    outs = [row["out"] for row in rows]
    if twice := next((out for out in outs if outs.count(out) > 1), None):
        raise ValueError(f"two rows write '{twice}'")
    return rows


def _checked(row: dict[str, Any], place: int, folder: Path) -> dict[str, str]:
    image, out = folder / str(row["image"]), folder / str(row["out"])
    if not image.is_file():
        raise FileNotFoundError(f"row {place}: image '{image}' does not exist")
    if out.suffix != ".safetensors":
        raise ValueError(f"row {place}: out '{out}' must end in .safetensors")
    check_class_word(str(row["class_word"]))
    return {"image": str(image), "class_word": str(row["class_word"]), "out": str(out)}


def _in_this_process(rows: list[dict[str, str]], config: BulkConfig) -> list[dict[str, str]]:
    from promptnet.inference.tuning.bulk import BulkCustomizer

    customizer = BulkCustomizer(config)
    made = [customizer({name: [row[name]] for name in _COLUMNS}) for row in rows]
    return [{name: column[0] for name, column in one.items()} for one in made]


def _with_ray(
    rows: list[dict[str, str]],
    config: BulkConfig,
    workers: int,
    address: str | None,
    cpus_each: float,
    gpus_each: float,
) -> list[dict[str, str]]:
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_NEEDS) from error
    from dataclasses import replace

    from promptnet.inference.tuning.bulk import BulkCustomizer

    if config.device == "auto":
        config = replace(config, device="cuda" if gpus_each else "cpu")
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    blocks = min(len(rows), 4 * workers)  # several for each worker, so that the slowest does not end alone
    made = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        BulkCustomizer,
        fn_constructor_args=(config,),
        batch_size=1,
        concurrency=workers,
        num_cpus=cpus_each,
        num_gpus=gpus_each or None,
    )
    return [{name: str(row[name]) for name in ("out", "error")} for row in made.take_all()]
