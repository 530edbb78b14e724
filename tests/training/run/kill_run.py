"""Kill a shuffled, augmented run with loader workers and EMA again and again: nothing may come out differently.

    python tests/training/run/kill_run.py --kills 20

An uninterrupted run of 200 steps, then one that is killed (`kill -9`) at random moments and as often while it saves,
the command repeated each time. Compared bit for bit: every loss, weights, their average, optimiser and schedule; and
the ledger must show every image exactly once an epoch. After every kill, a whole checkpoint must be there and load.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))

from promptnet.training.run.checkpoints import newest_checkpoint
from promptnet.training.run.manifest import DRAFT, read_manifest
from tests.training.forked import Runs
from tests.training.run.ledger import read_ledger

NUM_IMAGES = 60


@dataclass
class Outcome:
    """What was done to a run, and the step of the newest whole checkpoint after each kill."""

    at_random: list[int] = field(default_factory=list)
    while_saving: list[int] = field(default_factory=list)
    num_half_written: int = 0
    num_too_late: int = 0

    def note(self, killed: bool, at_random: bool, step: int, half_written: bool) -> None:
        """One more kill."""
        self.num_half_written += half_written
        self.num_too_late += not killed
        if killed:
            (self.at_random if at_random else self.while_saving).append(step)

    def __str__(self) -> str:
        return (
            f"killed {len(self.at_random)} times at random (newest whole checkpoint then: steps {self.at_random})\n"
            f"killed {len(self.while_saving)} times while saving (steps {self.while_saving})\n"
            f"{self.num_half_written} left a half-written checkpoint, {self.num_too_late} came after the run's end"
        )


def newest_step(run_dir: Path) -> int:
    """Steps behind the newest checkpoint, which verifies and loads; 0 where there is none yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none is to be damaged
        newest = newest_checkpoint(run_dir)
    if newest is None:
        return 0
    state = torch.load(newest, weights_only=True)
    assert state["global_step"] == read_manifest(newest.parent).step
    return state["global_step"]


def drafts(run_dir: Path) -> list[Path]:
    """What is being written, or was when its process died."""
    return list((run_dir / "checkpoints").glob(f".*{DRAFT}"))


def step_reached(run_dir: Path) -> int:
    """Steps that the ledger shows, those included that no checkpoint holds."""
    ledger = run_dir / "ledger/rank-0.jsonl"
    return ledger.read_text().count('"batch"') if ledger.exists() else 0


def has_ended(pid: int) -> bool:
    """Whether a process has ended: until somebody asks for its status, it stays in the list without a program."""
    try:
        return not Path(f"/proc/{pid}/exe").readlink()
    except FileNotFoundError:
        return True


def kill_at_random(runs: Runs, run_dir: Path, window_s: float, options: list[str], rng: random.Random) -> bool:
    """Start the run and kill it at a random moment, one in four before its first step; False if it ended by itself."""
    reached = step_reached(run_dir)
    pid = runs.start_tiny(run_dir, *options)
    if starting := rng.random() < 0.25:
        time.sleep(rng.uniform(0, 1))
    while not starting and step_reached(run_dir) == reached and not has_ended(pid):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, window_s))
    return runs.kill(pid) < 0


def kill_while_saving(runs: Runs, run_dir: Path, options: list[str], rng: random.Random) -> bool:
    """Start the run, see how long its first save takes, and kill it within the next; False if it ended by itself."""
    left = set(drafts(run_dir))
    pid = runs.start_tiny(run_dir, *options)

    def until(saving: bool) -> float:
        while bool(set(drafts(run_dir)) - left) != saving and not has_ended(pid):
            time.sleep(0.0002)
        return time.monotonic()

    save_s = -until(True) + until(False)
    until(True)
    time.sleep(rng.uniform(0, save_s))
    return runs.kill(pid) < 0


def torment(runs: Runs, run_dir: Path, kills: int, stepping_s: float, options: list[str], seed: int) -> Outcome:
    """Kill a run `kills` times at random and `kills` times while saving, in random order, then let it finish."""
    rng, outcome, step = random.Random(seed), Outcome(), 0
    plan = [True] * kills + [False] * kills
    rng.shuffle(plan)
    for at_random in plan:
        if at_random:
            killed = kill_at_random(runs, run_dir, stepping_s / kills, options, rng)
        else:
            killed = kill_while_saving(runs, run_dir, options, rng)
        before, step = step, newest_step(run_dir)
        assert step >= before, f"the newest checkpoint went back from step {before} to {step}"
        outcome.note(killed, at_random, step, bool(drafts(run_dir)))
    code = runs.wait(runs.start_tiny(run_dir, *options))
    assert code == 0, (run_dir / "log").read_text()[-2000:]
    assert not drafts(run_dir), "a half-written checkpoint was left behind"
    return outcome


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """Where two nests of tensors and numbers differ, bit for bit."""
    if isinstance(expected, torch.Tensor):
        same = isinstance(found, torch.Tensor) and expected.dtype == found.dtype and torch.equal(expected, found)
        return [] if same else [where]
    if isinstance(expected, dict):
        if expected.keys() != found.keys():
            return [f"{where}: {sorted(map(str, expected.keys() ^ found.keys()))}"]
        return [line for key in expected for line in differences(expected[key], found[key], f"{where}/{key}")]
    if isinstance(expected, list | tuple):
        pairs = itertools.zip_longest(expected, found)
        return [line for i, (a, b) in enumerate(pairs) for line in differences(a, b, f"{where}/{i}")]
    return [] if expected == found else [f"{where}: {expected} is not {found}"]


COMPARED = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")


def state_at(run_dir: Path, step: int) -> dict[str, Any]:
    """What the checkpoint of a step holds."""
    return torch.load(run_dir / f"checkpoints/step={step}.ckpt/state.ckpt", weights_only=True)


def compare(whole: Path, killed: Path, step: int = 200) -> None:
    """Assert that both runs ended with the same state, had the same losses and saw the same images."""
    expected, found = state_at(whole, step), state_at(killed, step)
    wrong = [line for part in COMPARED for line in differences(expected[part], found[part], part)]
    assert not wrong, wrong
    ledgers = [read_ledger(folder / "ledger/rank-0.jsonl") for folder in (whole, killed)]
    assert ledgers[0] == ledgers[1]
    check_epochs(ledgers[1])


def check_epochs(ledger: list[dict[str, Any]]) -> None:
    """Assert that sample numbers run on without a gap and every epoch holds every image once."""
    samples = [sample for entry in ledger for sample in entry["sample"]]
    images = [image for entry in ledger for image in entry["index"]]
    assert samples == list(range(len(samples)))
    epochs = [images[start : start + NUM_IMAGES] for start in range(0, len(images), NUM_IMAGES)]
    for epoch in epochs[:-1]:
        assert sorted(epoch) == list(range(NUM_IMAGES))
    assert len(set(epochs[-1])) == len(epochs[-1])
    assert epochs[0] != epochs[1], "the order is the same in every epoch"


def run(runs: Runs, folder: Path, kills: int, seed: int) -> Outcome:
    """The whole test in an empty folder."""
    options = [f"--checkpoint.every_n_train_steps={max(2, 25 // kills)}"]
    whole = runs.start_tiny(folder / "whole", *options)
    runs.wait_for(lambda: step_reached(folder / "whole") > 0, whole)
    begun = time.monotonic()
    assert runs.wait(whole) == 0, (folder / "whole/log").read_text()[-2000:]
    outcome = torment(runs, folder / "killed", kills, time.monotonic() - begun, options, seed)
    compare(folder / "whole", folder / "killed")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="at random moments, and as many while saving")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Runs() as runs:
        print(run(runs, Path(folder), arguments.kills, arguments.seed))
    print("losses, weights, average, optimiser and ledger are those of the uninterrupted run")


if __name__ == "__main__":
    main()
