"""A checkpoint under its name is whole, whatever happens while it is written; the newest whole one is found."""

import errno
import os
import resource
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from promptnet.training.run import manifest as sealing
from promptnet.training.run.checkpoints import (
    STATE,
    CheckpointError,
    RunCheckpointIO,
    draft_of,
    newest_checkpoint,
    newest_first,
    next_number,
    not_written,
    remove,
    sweep,
    tensor_bytes,
)
from promptnet.training.run.manifest import seal


def write(run_dir: Path, step: int, *, number: int | None = None, state: Any = None) -> Path:
    """A sealed checkpoint, as `RunTrainer` writes it."""
    final = run_dir / "checkpoints" / f"step={step}.ckpt"
    draft = draft_of(final)
    draft.mkdir(parents=True)
    RunCheckpointIO().save_checkpoint(state or {"global_step": step, "weights": torch.arange(999)}, draft / STATE)
    seal(draft, final, number=number or next_number(final.parent), step=step)
    return final


def damage(checkpoint: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray((checkpoint / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / STATE).write_bytes(content)


def test_a_checkpoint_round_trips(tmp_path: Path):
    write(tmp_path, 5)
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoints/step=5.ckpt/state.ckpt"
    assert torch.equal(RunCheckpointIO().load_checkpoint(newest)["weights"], torch.arange(999))


def test_state_is_never_read_as_pickled_code(tmp_path: Path):
    class Payload:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"global_step": Payload()}, tmp_path / "state.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        RunCheckpointIO().load_checkpoint(tmp_path / "state.ckpt", weights_only=False)


def test_a_new_run_has_no_checkpoint(tmp_path: Path):
    assert newest_checkpoint(tmp_path) is None
    draft_of(tmp_path / "checkpoints/step=1.ckpt").mkdir(parents=True)
    assert newest_checkpoint(tmp_path) is None


def test_the_newest_is_the_last_written_whatever_the_clock_says(tmp_path: Path):
    for step, age_s in ((9, 0), (10, 5000), (8, 90000)):  # someone went back to an earlier one and on from there
        path = write(tmp_path, step)
        os.utime(path, (1e9 - age_s, 1e9 - age_s))
    assert [path.name for path in newest_first(tmp_path / "checkpoints")] == [f"step={s}.ckpt" for s in (8, 10, 9)]


def test_the_newest_damaged_one_is_skipped_by_name(tmp_path: Path):
    older, newer = write(tmp_path, 2), write(tmp_path, 4)
    damage(newer)
    with pytest.warns(UserWarning, match=r"skipping the damaged checkpoint .*step=4\.ckpt: state\.ckpt has changed"):
        assert newest_checkpoint(tmp_path) == older / STATE
    (newer / "manifest.json").unlink()
    with pytest.warns(UserWarning, match=r"step=4\.ckpt: it has no manifest\.json"):
        assert newest_checkpoint(tmp_path) == older / STATE


def test_a_run_with_none_but_damaged_ones_does_not_start_anew_unasked(tmp_path: Path):
    damage(write(tmp_path, 2))
    with pytest.warns(UserWarning, match="skipping"), pytest.raises(ValueError, match=r"none of the 1 .* is whole"):
        newest_checkpoint(tmp_path)


def test_a_run_that_is_over_goes_on_from_before_its_end(tmp_path: Path):
    paths = {step: write(tmp_path, step) for step in (2, 4, 6)}
    assert newest_checkpoint(tmp_path, below_step=6) == paths[4] / STATE
    assert newest_checkpoint(tmp_path, below_step=7) == paths[6] / STATE  # max_steps was raised
    assert newest_checkpoint(tmp_path, below_step=1) == paths[6] / STATE


def test_a_file_of_the_earlier_format_is_taken_with_a_warning_and_after_all_others(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age_s, step in ((30, 9), (20, 10)):
        torch.save({"global_step": step}, folder / f"epoch=0-step={step}.ckpt")
        os.utime(folder / f"epoch=0-step={step}.ckpt", (1e9 - age_s, 1e9 - age_s))
    with pytest.warns(UserWarning, match="written by an earlier version"):
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest == folder / "epoch=0-step=10.ckpt"
    assert RunCheckpointIO().load_checkpoint(newest) == {"global_step": 10}
    with pytest.warns(UserWarning, match=r"step=9\.ckpt was written by an earlier version"):
        assert newest_checkpoint(tmp_path, below_step=10) == folder / "epoch=0-step=9.ckpt"
    newest.write_bytes(newest.read_bytes()[:-40])
    with (
        pytest.warns(UserWarning, match=r"skipping the damaged checkpoint .*step=10\.ckpt"),
        pytest.warns(UserWarning, match=r"step=9\.ckpt was written by an earlier version"),
    ):
        assert newest_checkpoint(tmp_path) == folder / "epoch=0-step=9.ckpt"
    sealed = write(tmp_path, 11)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_checkpoint(tmp_path) == sealed / STATE


def test_what_killed_processes_left_is_swept_away_and_nothing_else(tmp_path: Path):
    kept = write(tmp_path, 2)
    draft = draft_of(kept.with_name("step=4.ckpt"))
    draft.mkdir()
    (draft / STATE).write_bytes(b"half")
    (kept.parent / ".epoch=0-step=3.ckpt.77.draft").write_bytes(b"of the earlier format")
    sweep(tmp_path)
    assert os.listdir(kept.parent) == ["step=2.ckpt"]


def test_removing_takes_the_name_away_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path, 2)
    monkeypatch.setattr("promptnet.training.run.checkpoints.shutil.rmtree", lambda *_, **__: None)  # killed right there
    remove(path)
    assert newest_checkpoint(tmp_path) is None


def test_a_failing_flush_leaves_the_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def disk_full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    old = write(tmp_path, 2)
    monkeypatch.setattr(sealing.os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 4)
    assert newest_checkpoint(tmp_path) == old / STATE


def test_a_full_disk_is_an_error_that_names_path_and_room(tmp_path: Path):
    big = {"weights": torch.zeros(300_000)}
    assert tensor_bytes(big) == 1_200_000
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # the kernel fails the write half way
    try:
        with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*big\.ckpt: .* about 1 MB.* free"):
            RunCheckpointIO().save_checkpoint(big, tmp_path / "big.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_the_room_is_told_also_for_a_folder_that_is_not_there(tmp_path: Path):
    assert "needs about 7 MB" in str(not_written(tmp_path / "no/x.ckpt", 7_000_000, OSError("no")))
