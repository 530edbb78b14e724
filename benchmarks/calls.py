"""What it costs one caller that a call owns its state: this checkout against another, in pairs.

    git worktree add ../before COMMIT
    python benchmarks/calls.py --reference ../before

One process for each checkout draws and tunes in turn, so that both meet the same load of the machine: `--rounds` times
one call here and one there. Printed is, for each kind of call, the median of the ratios of a pair, this checkout's time
over the reference's, with the smallest and the largest.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from timing import paired_ratios, seconds_of, spread

HERE = Path(__file__).resolve().parents[1]
KINDS = ("plain", "subject", "wide", "customize")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="root of another checkout")
    parser.add_argument("--base", type=Path, default=HERE / "checkpoints" / "tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        serve(asked.reference, asked.base, asked.device)
        return
    this, reference = (Worker(root, asked.base, asked.device) for root in (HERE, asked.reference.resolve()))
    for kind in asked.kinds:
        here, there = (partial(worker.seconds, kind) for worker in (this, reference))
        ratios = paired_ratios(here, there, asked.rounds)
        print(f"{kind:10} this / reference: {spread(ratios)}", flush=True)
    for worker in (this, reference):
        worker.close()


class Worker:
    """A process that imports the package from one checkout."""

    def __init__(self, root: Path, base: Path, device: str) -> None:
        command = [sys.executable, __file__, "--worker", "--reference", str(root), "--base", str(base)]
        self.process = subprocess.Popen(
            [*command, "--device", device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, kind: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(kind, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker for {self.process.args} ended")
        return json.loads(answer)

    def close(self) -> None:
        self.process.communicate()


def serve(root: Path, base: Path, device: str) -> None:
    """Answer each kind of call that is asked for with the seconds it took."""
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.path.insert(0, str(root))
    import promptnet

    assert Path(promptnet.__file__).is_relative_to(root), promptnet.__file__
    calls = calls_of(base, device)
    for line in sys.stdin:
        print(json.dumps(seconds_of(calls[line.strip()], device)), file=answers, flush=True)


def calls_of(base: Path, device: str) -> dict[str, Callable[[], Any]]:
    """One call of each kind, always the same."""
    import torch

    from promptnet import PromptNetPipeline
    from promptnet.datasets.avatars.person import sample_avatar
    from promptnet.datasets.avatars.render import render_avatar

    torch.set_num_threads(1)
    pipe: Any = PromptNetPipeline.from_pretrained(base).to(device)
    pipe.set_progress_bar_config(disable=True)
    portrait = render_avatar(sample_avatar(0, 0, "validation"), 64)

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def customize(steps: int) -> Any:
        return pipe.customize(portrait, steps=steps, batch_size=2, num_views=4, generator=seeded(), progress_bar=False)

    def generated(prompt: str, **options: Any) -> Callable[[], Any]:
        return lambda: pipe(prompt, generator=seeded(), num_inference_steps=10, output_type="latent", **options)

    return {
        "plain": generated("a happy portrait of a person"),
        "subject": generated("a happy portrait of S*", subject=customize(2)),
        "wide": generated("a happy portrait of a person", height=96, width=160),
        "customize": lambda: customize(20),
    }


if __name__ == "__main__":
    main()
