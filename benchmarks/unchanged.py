"""Prove that a change of the code changes no result: run fixed cases and compare them with a stored reference.

    python benchmarks/unchanged.py
    python benchmarks/unchanged.py fusion tuning
    python benchmarks/unchanged.py --write

Run the first before and after a change that is to change nothing, such as a re-layout; names of cases run these alone.
`--write` replaces the reference, benchmarks/unchanged.safetensors: for a change that is meant, on the commit before it
or, with a word on what changed and why, after it. The cases are in unchanged_cases.py; all together take under two
minutes on one thread.

Small tensors are kept whole. Of large ones and of weights two sums of each tensor are kept, and one hash of all bits.
On the machine and with the libraries of the reference, results should be equal bit for bit. Other kernels round
differently, so the exit status is 1 only where a result differs by more than 1e-5 of its largest value. A sum may
differ by 1e-5 of the sum of absolute values, which are taken as 0.1 on average where they are smaller: Adam's first
steps have one size whatever the gradient, so rounding decides where a weight that began at zero goes.
"""

import argparse
import hashlib
import json
import logging
import random
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from unchanged_cases import BASE, CASES, Images, Result, Weights

from promptnet import PromptNetPipeline
from promptnet.commands._loading import quiet
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.io.atomic import write_whole

REFERENCE = Path(__file__).with_suffix(".safetensors")
TOLERANCE = 1e-5
SMALL_VALUE = 0.1  # the least mean of absolute values that a sum's difference is relative to
IMAGES = "images"


@dataclass(frozen=True)
class Kept:
    """What is stored of the cases: tensors by "case/entry", and the hash of each entry's bits."""

    tensors: dict[str, Tensor]
    hashes: dict[str, str]


@dataclass(frozen=True)
class Reference:
    """The file's contents: the reference images, the results, and what they were made with."""

    images: Tensor
    kept: Kept
    base: dict[str, str]
    made_with: str


# -- running ----------------------------------------------------------------------------------------------------------


def make_deterministic() -> None:
    """Fix what a process fixes once."""
    quiet()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def settle() -> None:
    """Put everything that a case may leave behind to a known state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # training switches it on for the whole process


def run_case(name: str, images: Images) -> Kept:
    """Run one case, as if it were the only one."""
    settle()
    return kept_of(name, CASES[name](images))


def kept_of(name: str, result: Result) -> Kept:
    """Return what is stored of a case's result."""
    tensors, hashes = {}, {}
    for entry, value in result.items():
        parts = [part.detach().cpu() for part in ([value] if isinstance(value, Tensor) else value)]
        hashes[f"{name}/{entry}"] = hash_of(parts)
        tensors[f"{name}/{entry}"] = parts[0].contiguous() if isinstance(value, Tensor) else sums_of(parts)
    return Kept(tensors, hashes)


def hash_of(parts: Weights) -> str:
    """Return the SHA-256 of the tensors' shapes, types and bits; names of weights stay out, so they may change."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{tuple(part.shape)} {part.dtype}:".encode())
        found.update(part.contiguous().numpy().tobytes())
    return found.hexdigest()


def sums_of(parts: Weights) -> Tensor:
    """Return, for each of N tensors, weighted sums (N, 3): of its positive values, its negative values, and of ones.

    The weights rise from 1 to 2 over the tensor, so that an exchange of values is seen.
    """
    found = []
    for part in parts:
        values = part.double().flatten()
        weights = torch.linspace(1, 2, len(values), dtype=torch.float64)
        parts_of = (values.clamp(min=0), values.clamp(max=0), torch.ones_like(values))
        found.append(torch.stack([(weights * part_of).sum() for part_of in parts_of]))
    return torch.stack(found) if found else torch.zeros(0, 3, dtype=torch.float64)


def base_fingerprint() -> dict[str, str]:
    """Return the embedded model's fingerprint."""
    return fingerprint(PromptNetPipeline.from_pretrained(BASE))


def libraries() -> str:
    """Name what rounding depends on."""
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, diffusers, transformers)]
    return f"{', '.join(versions)}, CPU capability {torch.backends.cpu.get_cpu_capability()}"


# -- the reference images ---------------------------------------------------------------------------------------------


def rendered_images() -> Tensor:
    """Render two people twice, (4, 64, 64, 3) uint8; once only, as the reference keeps them."""
    from promptnet.datasets.avatars.person import sample_attributes, sample_identity
    from promptnet.datasets.avatars.render import render

    rng = random.Random(0)
    people = [sample_identity(0, index, "validation") for index in (0, 0, 1, 1)]
    avatars = [render(person, sample_attributes(person.style, rng), 64) for person in people]
    return torch.from_numpy(np.stack([np.asarray(avatar) for avatar in avatars]))


def opened(images: Tensor) -> Images:
    """Return the reference images as PIL images."""
    return [Image.fromarray(image.numpy()) for image in images]


# -- the file ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> Reference:
    """Read a reference."""
    with safe_open(path, "pt") as file:
        about: dict[str, str] = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    images = tensors.pop(IMAGES)
    return Reference(images, Kept(tensors, json.loads(about["sha256"])), json.loads(about["base"]), about["made_with"])


def save(reference: Reference, path: Path) -> None:
    """Write a reference, whole or not at all."""
    about = {
        "sha256": json.dumps(reference.kept.hashes),
        "base": json.dumps(reference.base),
        "made_with": reference.made_with,
    }
    tensors = {IMAGES: reference.images, **reference.kept.tensors}
    write_whole(path, lambda part: save_file(tensors, part, about), public=True)


def write(path: Path) -> None:
    """Run all cases and write them; the images stay where there are some."""
    images = load(path).images if path.exists() else rendered_images()
    tensors: dict[str, Tensor] = {}
    hashes: dict[str, str] = {}
    for name in CASES:
        found = run_case(name, opened(images))
        tensors |= found.tensors
        hashes |= found.hashes
        print(f"{name:<24} {len(found.tensors)} results", flush=True)
    save(Reference(images, Kept(tensors, hashes), base_fingerprint(), libraries()), path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {libraries()}")


# -- comparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One result against the reference.

    Args:
        entry: "case/entry".
        verdict: what the table says.
        passed: whether it is equal, or nearly.
        equal: whether it is equal bit for bit.
    """

    entry: str
    verdict: str
    passed: bool
    equal: bool = False


def compare(found: Kept, reference: Kept, names: Sequence[str]) -> list[Comparison]:
    """Compare the results of these cases with the reference's, one comparison for each result on either side."""
    wanted = [entry for entry in reference.tensors if entry.partition("/")[0] in names]
    return [compare_entry(entry, found, reference) for entry in dict.fromkeys([*found.tensors, *wanted])]


def compare_entry(entry: str, found: Kept, reference: Kept) -> Comparison:
    """Compare one result."""
    if entry not in reference.tensors or entry not in found.tensors:
        side = "reference" if entry not in reference.tensors else "case"
        return Comparison(entry, f"DIFFERS: not in the {side}", passed=False)
    if found.hashes[entry] == reference.hashes[entry]:
        return Comparison(entry, "equal bit for bit", passed=True, equal=True)
    ours, theirs = found.tensors[entry], reference.tensors[entry]
    if ours.shape != theirs.shape:
        return Comparison(entry, f"DIFFERS: shape {tuple(ours.shape)}, was {tuple(theirs.shape)}", passed=False)
    absolute, relative = differences(ours, theirs)
    passed = relative <= TOLERANCE  # false where it is no number
    verdict = f"{'differs' if passed else 'DIFFERS'} by {absolute:.1e} at most, relative {relative:.1e}"
    return Comparison(entry, verdict, passed)


def differences(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return the largest difference, and the largest relative to the reference's size."""
    apart = (ours.double() - theirs.double()).abs()
    return float(apart.max()), float((apart / scale_of(theirs.double().abs(), theirs.dtype)).max())


def scale_of(size: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what differences are relative to: the largest absolute value, or of sums, in float64, those of each row.

    Args:
        size: absolute values, or the sums (N, 3) of `sums_of`, made positive.
        dtype: of the stored tensor.
    """
    if dtype == torch.float64:
        return torch.maximum(size[:, :2].sum(dim=1), SMALL_VALUE * size[:, 2])[:, None]
    return size.max().clamp_min(torch.finfo(torch.float32).tiny)


def report(comparisons: Sequence[Comparison]) -> None:
    """Print the table."""
    for comparison in comparisons:
        print(f"{comparison.entry:<36} {comparison.verdict}", flush=True)


def check(names: Sequence[str], path: Path) -> int:
    """Run and compare these cases, all if none is named; return the exit status."""
    reference = load(path)
    if base_fingerprint() != reference.base:
        print(f"the base model's fingerprint differs ({BASE.name}): write the reference anew (--write)")
        return 1
    print(f"reference: {reference.made_with}\nhere:      {libraries()}\n")
    start_s, done = time.perf_counter(), []
    for name in names or CASES:
        comparisons = compare(run_case(name, opened(reference.images)), reference.kept, [name])
        report(comparisons)
        done += comparisons
    if not names:  # a case that is gone has not been proven unchanged
        gone = compare(Kept({}, {}), reference.kept, sorted(cases_of(reference.kept.tensors) - set(CASES)))
        report(gone)
        done += gone
    num_equal, num_failed = sum(one.equal for one in done), sum(not one.passed for one in done)
    print(
        f"\n{len(done)} results in {time.perf_counter() - start_s:.0f} s: {num_equal} equal bit for bit, "
        f"{len(done) - num_equal - num_failed} within {TOLERANCE:.0e}, {num_failed} differ"
    )
    return int(num_failed > 0)


def cases_of(tensors: Mapping[str, Any]) -> set[str]:
    """Return the names of the cases of "case/entry"."""
    return {entry.partition("/")[0] for entry in tensors}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"what to compare (default all): {', '.join(CASES)}")
    parser.add_argument("--write", action="store_true", help="write the reference in place of comparing with it")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.cases if name not in CASES]:
        parser.error(f"there is no case {', '.join(unknown)}: there are {', '.join(CASES)}")
    if args.write and args.cases:
        parser.error("--write takes no names: it writes all cases, so that all are of one state of the code")
    make_deterministic()
    if args.write:
        write(REFERENCE)
        return 0
    return check(args.cases, REFERENCE)


if __name__ == "__main__":
    sys.exit(main())
