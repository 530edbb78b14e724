"""Everything that wants a GPU, in one run of at most nine minutes: parts that stand alone, the most worthwhile first.

    python benchmarks/gpu/run.py [--size true] [--parts sampling customise] [--out outputs/gpu] [--limit 540]

Each part is a process with a time limit of its own: one that hangs, dies or runs out of memory costs the others
nothing. After each part `results.json` and `table.md` are written anew, so an end at any moment leaves what was
measured. Networks have the true shapes and random weights: times and memory mean something, images do not.
`--size toy` runs the same code on the embedded model's shape, on a CPU too; its figures mean nothing.

`make gpu` runs it. Where diffusers is not installed, `benchmarks/gpu/wheels.sh` collects the missing wheels
beforehand, on a machine with an index; they are unpacked and found here.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SLOWER = 10  # limits are of a GPU; a CPU that others use gets this much more
UNPACKED = ROOT / "outputs" / "gpu-wheels"


@dataclass(frozen=True)
class Part:
    """One part of the run.

    Args:
        name: of its function in parts.py.
        limit_s: seconds after which it is ended.
        about: what it measures.
    """

    name: str
    limit_s: int
    about: str


PARTS = (
    Part("unit_tests", 60, "unit tests marked gpu"),
    Part("sampling", 70, "Fusion Sampling against the straightforward loop, and fewer evaluations"),
    Part("customise", 45, "per-user tuning"),
    Part("compiled", 70, "pipe.compile() against eager, and from subject to subject"),
    Part("pretraining", 70, "a pretraining step: eager, checkpointed, with an 8-bit optimiser, compiled"),
    Part("batched_users", 25, "users in one batch against one after the other"),
    Part("large_images", 30, "SDXL's U-Net at two and four times its size, adapted against unmodified"),
    Part("mixing_weights", 35, "the gradient through a whole drawing at 512 px"),
    Part("sharding", 75, "FSDP and ZeRO-2 on one card: stopped, saved, resumed"),
    Part("preemption", 60, "SIGTERM at real size: stopped, saved, resumed"),
)
"""In the order of their worth; together at most nine minutes."""


def environment() -> dict[str, str]:
    """Return what a part's process sees: our packages, collected wheels last, nothing of the network."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), str(HERE), os.environ.get("PYTHONPATH", "")]
    paths += [str(UNPACKED)] if UNPACKED.exists() else []
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def unpack(wheels: Path, folder: Path) -> None:
    """Unpack those collected wheels whose package is not installed; pure Python wheels need no more."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            packages = {name.partition("/")[0] for name in archive.namelist()}
            names = [name for name in packages if name.isidentifier()]
            if not all(importlib.util.find_spec(name) for name in names):
                archive.extractall(folder)


def run_part(part: Part, size: str, device: str, folder: Path, limit_s: float) -> dict[str, Any]:
    """Run a part in a process group of its own, and return its record: state, seconds and rows."""
    found = folder / f"{part.name}.json"
    found.unlink(missing_ok=True)
    words = [sys.executable, str(HERE / "parts.py"), part.name, size, device, str(found)]
    started_s = time.monotonic()
    with (folder / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(), start_new_session=True
        )
        try:
            state = "done" if process.wait(limit_s) == 0 else f"failed with status {process.returncode}"
        except subprocess.TimeoutExpired:
            state = f"ended after {limit_s:.0f} s"
        finally:
            end(process)
            shutil.rmtree(folder / part.name, ignore_errors=True)  # checkpoints of several GB
    rows = json.loads(found.read_text()) if found.exists() else []
    return {"state": state, "seconds": round(time.monotonic() - started_s, 1), "rows": rows}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table(machine: Mapping[str, str], records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [f"{', '.join(f'{key} {value}' for key, value in machine.items())}.", ""]
    lines += ["| part | what | result |", "|---|---|---|"]
    for part in PARTS:
        if part.name not in records:
            continue
        record = records[part.name]
        lines.append(f"| {part.name} | {part.about} | {record['state']}, {record['seconds']} s |")
        lines += [f"| | {row['what']} | {row['value']} {row['unit']} |" for row in record["rows"]]
    return "\n".join(lines) + "\n"


def write(folder: Path, machine: Mapping[str, str], records: Mapping[str, Any]) -> None:
    """Write both files, each whole or not at all."""
    texts = {"results.json": json.dumps({"machine": machine, "parts": records}, indent=1), "table.md": ""}
    texts["table.md"] = table(machine, records)
    for name, text in texts.items():
        part = folder / f".{name}"
        part.write_text(text)
        part.rename(folder / name)


def machine_of(device: str, size: str) -> dict[str, str]:
    """Return what the figures were measured on."""
    import torch

    card = torch.cuda.get_device_name() if device.startswith("cuda") else f"{platform.machine()}, CPU"
    day = time.strftime("%d %B %Y")
    threads = str(torch.get_num_threads())
    return {"device": card, "size": size, "torch": torch.__version__, "threads": threads, "date": day}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; the status is 0 if all of them are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("true", "toy"), help="default: true on a GPU, toy without one")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="default: all")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--limit", type=float, default=540, help="seconds of the whole run")
    args = parser.parse_args(argv)
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = args.size or ("true" if device.startswith("cuda") else "toy")
    args.out.mkdir(parents=True, exist_ok=True)
    unpack(HERE / "wheels", UNPACKED)
    machine, records, begin_s = machine_of(device, size), {}, time.monotonic()
    for part in PARTS:
        if args.parts and part.name not in args.parts:
            continue
        left_s = args.limit - (time.monotonic() - begin_s)
        limit_s = min(part.limit_s * (SLOWER if device == "cpu" else 1), left_s)
        if left_s < 5:
            records[part.name] = {"state": "not begun, the time is over", "seconds": 0, "rows": []}
        else:
            records[part.name] = run_part(part, size, device, args.out, limit_s)
        print(f"{part.name}: {records[part.name]['state']}", flush=True)
        write(args.out, machine, records)
    shutil.rmtree(args.out / "random-base", ignore_errors=True)  # training parts share it
    print(f"{args.out / 'table.md'}")
    return int(any(record["state"] != "done" for record in records.values()))


if __name__ == "__main__":
    sys.exit(main())
