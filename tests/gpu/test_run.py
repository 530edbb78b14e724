"""The harness of the GPU run, at toy size on a CPU."""

import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "benchmarks" / "gpu", ROOT / "benchmarks")
ROWS = {
    "customise": ["customise, 2 steps"],
    "pretraining": ["eager", "checkpointed", "8-bit optimiser: not run", "compiled"],
    "batched_users": ["2 tuned users in one batch against one by one"],
    "large_images": ["256 px adapted against unmodified", "512 px adapted against unmodified"],
    "mixing_weights": ["gradient through 2 steps"],
}
"""Part -> some of the rows it has to note, for the parts that run in this process."""
LONG = ("unit_tests", "sampling", "compiled", "sharding", "preemption")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gpu"))
    sys.modules.pop("run", None)
    import run  # pyright: ignore[reportMissingImports]

    yield run
    sys.modules.pop("run", None)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The parts as functions, in this process; what they import from benchmarks/ is forgotten afterwards."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(ROOT)
    known = set(sys.modules)
    yield importlib.import_module("parts")
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDERS[1])):
            del sys.modules[name]


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
    monkeypatch.setattr(run, "SLOWER", 2)
    monkeypatch.setattr(
        run, "PARTS", (run.Part("sampling", 1, ""), run.Part("customise", 20, ""), run.Part("compiled", 20, ""))
    )
    assert run.main(["--size", "toy", "--device", "cpu", "--out", str(tmp_path / "out")]) == 1
    found = results(tmp_path / "out")
    assert [record["state"] for record in found.values()] == ["ended after 2 s", "failed with status 3", "done"]
    assert all(record["rows"][0]["value"] == 1 for record in found.values())


def test_nothing_is_begun_when_the_time_is_over(run: Any, tmp_path: Path):
    assert run.main(["--device", "cpu", "--limit", "1", "--out", str(tmp_path)]) == 1
    assert {record["state"] for record in results(tmp_path).values()} == {"not begun, the time is over"}


def test_parts_are_functions_and_fit_into_nine_minutes(run: Any, parts: Any):
    names = [part.name for part in run.PARTS]
    assert all(callable(getattr(parts, name)) for name in names)
    assert sum(part.limit_s for part in run.PARTS) <= 540
    assert sorted(names) == sorted([*ROWS, *LONG])  # each has a test below


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "pretraining" else []) for name in ROWS]
)
def test_a_part_runs_at_toy_size(name: str, parts: Any, tmp_path: Path):
    notes = parts.Notes("toy", "cpu", tmp_path / f"{name}.json")
    getattr(parts, name)(notes)
    rows = json.loads(notes.path.read_text())
    assert set(ROWS[name]) <= {row["what"] for row in rows}
    assert all(row["value"] > 0 for row in rows if isinstance(row["value"], float))


def test_the_run_needs_no_package_but_those_given_and_collected():
    words = [sys.executable, str(ROOT / "tests" / "gpu" / "lean_imports.py")]
    result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


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
@pytest.mark.parametrize("name", LONG)
def test_a_long_part_runs_at_toy_size(name: str, run: Any, tmp_path: Path):
    given = ["--size", "toy", "--device", "cpu", "--limit", "6000", "--parts", name, "--out", str(tmp_path)]
    status = run.main(given)
    assert status == 0, (results(tmp_path), (tmp_path / f"{name}.log").read_text()[-3000:])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []  # no checkpoint is left
