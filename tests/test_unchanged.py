"""The proof that nothing changed: a case equals itself, and what differs is said."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
PROMISED = {
    *("prompt", "prompt_decoded", "subject_untuned", "subject_tuned", "fusion", "fusion_euler", "refinement"),
    *("two_subjects", "edit_card", "edit_image", "inversion", "inversion_plms"),
    *("size_wide", "size_large", "size_auto", "size_settings", "size_unet", "sdxl"),
    *("tuning", "pretraining", "pretraining_sdxl", "edit_learning", "edit_learning_images"),
}
CASE = "size_unet"


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, as `python benchmarks/unchanged.py` finds it; what it fixes in the process is undone."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module: Any = importlib.import_module("unchanged")
    yield module
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def reference(unchanged: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A reference of one case."""
    monkeypatch.setattr(unchanged, "CASES", {CASE: unchanged.CASES[CASE]})
    path = tmp_path / "reference.safetensors"
    unchanged.write(path)
    monkeypatch.setattr(unchanged, "REFERENCE", path)
    return path


def test_the_reference_is_small_and_holds_every_case(unchanged: Any) -> None:
    assert set(unchanged.CASES) == PROMISED
    stored = unchanged.load(unchanged.REFERENCE)
    assert unchanged.cases_of(stored.kept.tensors) == PROMISED
    assert stored.kept.tensors.keys() == stored.kept.hashes.keys()
    assert stored.images.shape == (4, 64, 64, 3)
    assert unchanged.REFERENCE.stat().st_size <= 300_000


def test_a_case_equals_itself(unchanged: Any, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unchanged.main([]) == 0
    printed = capsys.readouterr().out
    assert "size_unet/adapted                    equal bit for bit" in printed
    assert "2 results" in printed


def tampered(unchanged: Any, path: Path, factor: float) -> None:
    """Multiply one stored result."""
    stored = unchanged.load(path)
    name, kept = f"{CASE}/adapted", stored.kept
    changed = replace(
        kept,
        tensors={**kept.tensors, name: kept.tensors[name] * factor},
        hashes={**kept.hashes, name: "another"},
    )
    unchanged.save(replace(stored, kept=changed), path)


@pytest.mark.parametrize(("factor", "status", "said"), [(1 + 4e-6, 0, "differs by"), (1.001, 1, "DIFFERS by")])
def test_rounding_passes_and_a_change_does_not(
    unchanged: Any, reference: Path, capsys: pytest.CaptureFixture[str], factor: float, status: int, said: str
) -> None:
    tampered(unchanged, reference, factor)
    assert unchanged.main([CASE]) == status
    printed = capsys.readouterr().out
    assert f"{said} " in printed
    assert "size_unet/plain                      equal bit for bit" in printed


def test_a_case_that_is_gone_is_missed(
    unchanged: Any, reference: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unchanged, "CASES", {})
    assert unchanged.main([]) == 1
    assert capsys.readouterr().out.count("DIFFERS: not in the case") == 2


def test_another_base_model_asks_for_a_new_reference(
    unchanged: Any, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = unchanged.load(reference)
    unchanged.save(replace(stored, base={**stored.base, "unet": "0" * 16}), reference)
    assert unchanged.main([]) == 1
    assert "fingerprint differs" in capsys.readouterr().out
    unchanged.write(reference)
    assert torch.equal(unchanged.load(reference).images, stored.images)
    assert unchanged.main([]) == 0


def test_names_that_are_not_there_are_refused(unchanged: Any) -> None:
    for given in (["no_such_case"], ["--write", CASE]):
        with pytest.raises(SystemExit):
            unchanged.main(given)


def test_sums_see_order_sign_and_size(unchanged: Any) -> None:
    values = torch.tensor([1.0, -2.0, 3.0])
    sums = unchanged.sums_of([values])
    assert sums.tolist() == [[1 * 1 + 3 * 2, -2 * 1.5, 1 + 1.5 + 2]]
    assert unchanged.sums_of([]).shape == (0, 3)  # of a subject that tuning did not improve
    for other in (values.flip(0), -values, values * 1.01):
        assert not torch.equal(unchanged.sums_of([other]), sums)


def test_differences_of_sums_are_relative_to_the_tensor_they_are_of(unchanged: Any) -> None:
    large, small, zeros = torch.full((4,), 50.0), torch.full((4,), 0.2), torch.zeros(4)
    theirs = unchanged.sums_of([large, small, zeros])
    for ours, relative in (
        ([large * 1.01, small, zeros], 0.01),
        ([large, small * 1.01, zeros], 0.01),
        ([large, small, zeros + 0.001], 0.01),
    ):
        assert unchanged.differences(unchanged.sums_of(ours), theirs)[1] == pytest.approx(relative, rel=1e-4)
