"""The harness of the GPU run, at toy size on a CPU."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gpu"))
    sys.modules.pop("run", None)
    import run  # pyright: ignore[reportMissingImports]

    yield run
    sys.modules.pop("run", None)


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())["parts"]


def test_parts_write_json_and_a_table_as_they_go(run: Any, tmp_path: Path):
    assert run.main(["--size", "toy", "--device", "cpu", "--parts", "mixing_weights", "--out", str(tmp_path)]) == 0
    (record,) = results(tmp_path).values()
    assert record["state"] == "done"
    assert record["rows"][0]["what"] == "gradient through 2 steps"
    assert record["rows"][0]["value"] > 0
    assert "| mixing_weights |" in (tmp_path / "table.md").read_text()


def test_a_part_that_hangs_is_ended_and_keeps_its_rows(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "parts.py"
    script.write_text(
        "import json, sys, time\n"
        'json.dump([{"what": "x", "value": 1, "unit": ""}], open(sys.argv[4], "w"))\n'
        'if sys.argv[1] == "sampling": time.sleep(60)\n'
        'sys.exit(3 * (sys.argv[1] == "customise"))\n'
    )
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(
        run, "PARTS", (run.Part("sampling", 1, ""), run.Part("customise", 9, ""), run.Part("compiled", 9, ""))
    )
    assert run.main(["--size", "toy", "--device", "cpu", "--out", str(tmp_path / "out")]) == 1
    found = results(tmp_path / "out")
    assert [record["state"] for record in found.values()] == ["ended after 5 s", "failed with status 3", "done"]
    assert all(record["rows"][0]["value"] == 1 for record in found.values())


def test_nothing_is_begun_when_the_time_is_over(run: Any, tmp_path: Path):
    assert run.main(["--device", "cpu", "--limit", "1", "--out", str(tmp_path)]) == 1
    assert {record["state"] for record in results(tmp_path).values()} == {"not begun, the time is over"}


def test_parts_are_functions_and_fit_into_nine_minutes(run: Any):
    text = (ROOT / "benchmarks" / "gpu" / "parts.py").read_text()
    assert all(f"\ndef {part.name}(notes: Notes)" in text for part in run.PARTS)
    assert sum(part.limit_s for part in run.PARTS) <= 540


def test_wheels_of_missing_packages_are_unpacked(run: Any, tmp_path: Path):
    for name in ("missing_package", "torch"):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
            wheel.writestr(f"{name}-1.dist-info/METADATA", "")
    run.unpack(tmp_path, tmp_path / "unpacked")
    assert [path.name for path in (tmp_path / "unpacked").iterdir() if path.is_dir() and "." not in path.name] == [
        "missing_package"
    ]


def test_tests_for_a_gpu_are_left_out_without_one():
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", "tests/gpu/test_gpu.py"]
    environment = {"PATH": "", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert result.returncode == 5, result.stdout
    assert "no tests collected" in result.stdout
    assert "deselected" in result.stdout


@pytest.mark.slow
def test_every_part_runs_at_toy_size(run: Any, tmp_path: Path):
    status = run.main(["--size", "toy", "--device", "cpu", "--out", str(tmp_path), "--limit", "3000"])
    states = {name: record["state"] for name, record in results(tmp_path).items()}
    assert status == 0, (states, [path.read_text()[-2000:] for path in tmp_path.glob("*.log")])
