"""Features are computed before a training by all ranks together, and a signal ends that too."""

import os
import signal
import time
from pathlib import Path

import pytest

from promptnet.training.run.preemption import EXIT_INTERRUPTED
from tests.training.forked import Runs
from tests.training.pretrain.face_runs import face_pretraining
from tests.training.run.kill_run import newest_step
from tests.training.run.ranks import start_ranks

LIMIT_S = 10
NUM_CHUNKS = 6  # three shards, mirrored and not
CACHED = ("--data.init_args.features=[latents]", "--data.init_args.num_validation=2")
SLOWLY = ("--trainer.callbacks+=tests.training.run.slow_encoding.SlowEncoding", "--trainer.callbacks.pause_s=2")


def chunks(folder: Path) -> dict[Path, int]:
    """The files that a cache has, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "cache/features").rglob("*.safetensors")}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_signal_ends_the_filling_between_two_batches_and_what_is_done_stays(
    num_ranks: int, runs: Runs, face_base: Path, faces: Path, tmp_path: Path
):
    start, run_dir = face_pretraining(runs, face_base, faces, *CACHED), tmp_path / "run"
    ranks = [start(run_dir, *SLOWLY)] if num_ranks == 1 else start_ranks(runs, run_dir, start, *SLOWLY)
    runs.wait_for(lambda: bool(chunks(tmp_path)), ranks[0])
    sent = time.monotonic()
    os.kill(ranks[-1], signal.SIGTERM)  # one of them alone
    codes = [runs.wait(pid) for pid in ranks]
    assert codes == [EXIT_INTERRUPTED] * num_ranks, (run_dir / "log").read_text()[-3000:]
    assert time.monotonic() - sent < LIMIT_S
    done = chunks(tmp_path)
    assert 0 < len(done) < NUM_CHUNKS
    assert newest_step(run_dir) == 0
    if num_ranks == 1:
        assert runs.wait(start(run_dir)) == 0, (run_dir / "log").read_text()[-3000:]
        assert len(chunks(tmp_path)) == NUM_CHUNKS
        assert chunks(tmp_path).items() >= done.items()


def test_the_filling_shows_how_far_it_is(runs: Runs, face_base: Path, faces: Path, tmp_path: Path):
    start, run_dir = face_pretraining(runs, face_base, faces, *CACHED), tmp_path / "run"
    shown = ("--trainer.enable_progress_bar=true", "--trainer.max_steps=1")
    assert runs.wait(start(run_dir, *shown)) == 0, (run_dir / "log").read_text()[-3000:]
    assert f"{NUM_CHUNKS}/{NUM_CHUNKS} batches" in (run_dir / "log").read_text()
