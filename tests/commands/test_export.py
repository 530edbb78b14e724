"""`promptnet export` on base models of random weights, with the reader in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptnet import cli
from promptnet.commands import export as export_module
from promptnet.export.distillation import DistillConfig
from promptnet.export.graphs import reader as graph_reader
from promptnet.export.graphs import verification as graphs
from promptnet.export.verification import reader, run
from promptnet.inference.editing.card import EditCard
from tests.export.conftest import bases, load, make_subject, pipes  # noqa: F401  (fixtures)


@pytest.fixture
def call(
    pipes: dict[str, Any],  # noqa: F811
    bases: dict[str, Path],  # noqa: F811
    make_subject: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Run the command for a subject of a small base model."""

    def read_here(job: dict[str, Any], passing: Path) -> None:
        (passing / "job.json").write_text(json.dumps(job), "utf-8")
        reader.main(passing / "job.json")

    def run_graphs_here(job: dict[str, Any], passing: Path) -> None:
        (passing / "job.json").write_text(json.dumps(job), "utf-8")
        graph_reader.main(passing / "job.json")

    few = DistillConfig(steps=2, num_images=2, drawing_steps=2, prompts=("a S*",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_run_reader", read_here)
    monkeypatch.setattr(graphs, "_run_reader", run_graphs_here)
    monkeypatch.setattr("promptnet.export.distillation.DistillConfig", lambda **_: few)
    monkeypatch.setattr(export_module, "load_pipeline", lambda *_: pipes["sd"])
    monkeypatch.setattr(export_module, "prompt_of", lambda _: "a S*")
    make_subject(pipes["sd"]).save(tmp_path / "me.safetensors")

    def export(*options: str) -> int:
        given = ["export", "--subject", str(tmp_path / "me.safetensors"), "--base", str(bases["sd"]), *options]
        return cli.main([*given, "--out", str(tmp_path / "out")])

    export.base = str(bases["sd"])  # type: ignore[attr-defined]
    return export


def test_files_are_written_and_read_back(call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--to", "kohya,peft", "--consent", "It is me.") == 0
    said = capsys.readouterr()
    assert "An export is the face, too" in said.err
    assert "good" in said.err
    assert "no judge beside this base model: images were not judged" in said.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    written = {"me-kohya.safetensors", "me-peft", "me-words.safetensors"}
    assert names == written | {f"{name}.verdict.json" for name in written}
    assert {Path(line).name for line in said.out.split()} == written


def test_a_word_table_is_written_alone(call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--to", "word-table") == 0
    said = capsys.readouterr()
    assert "A prompt names the person as S*." in said.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"me-word-table.safetensors", "me-word-table.safetensors.verdict.json"}


def test_a_wrong_file_ends_with_status_1(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writing = export_module.make_passport

    def then_break(*given: Any) -> Any:
        monkeypatch.setattr("promptnet.export.registry.FORMATS", _broken(tmp_path))
        return writing(*given)

    monkeypatch.setattr(export_module, "make_passport", then_break)
    with pytest.raises(SystemExit) as ended:
        call("--to", "kohya", "--static", "mean")
    assert ended.value.code == 1
    assert "the file does not have this layer" in " ".join(capsys.readouterr().err.split())


def _broken(folder: Path) -> dict[str, Any]:
    """The formats, of which kohya forgets a layer."""
    from dataclasses import replace

    from promptnet.export.registry import FORMATS

    kohya = FORMATS["kohya"]

    def write(static: Any, path: Path, passport: Any) -> None:
        kohya.write(static, path, passport)
        tensors = load_file(path)
        first = next(iter(tensors)).partition(".")[0]
        save_file({key: tensor for key, tensor in tensors.items() if not key.startswith(first)}, path)

    return {**FORMATS, "kohya": replace(kohya, write=write)}


def test_without_verification_nothing_is_read_back(call: Any, tmp_path: Path) -> None:
    assert call("--to", "textual-inversion", "--static", "mean", "--no-verify") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["me-words.safetensors"]


def test_a_card_becomes_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "happy.safetensors"
    EditCard(torch.tensor([1.0, 0.0]), "a person", "a happy person", "DDIMScheduler", 3.0, {"unet": "x"}).save(card)
    assert cli.main(["export", "--card", str(card), "--to", "prompt-schedule", "--out", str(tmp_path / "out")]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written.read_text().startswith("[a person:a happy person:0.5]\n")


def test_a_bundle_is_written(call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--to", "bundle", "--reference-base") == 0
    assert (tmp_path / "out" / "bundle.json").is_file()
    assert cli.main(["inspect", str(tmp_path / "out")]) == 0
    assert "bundle, intact" in capsys.readouterr().out


def test_graphs_are_compiled_and_run(call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--to", "onnx", "--graphs", "vae_decoder", "--base", call.base, "--out", "made"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["made/onnx"]
    assert "good" in said.err
    assert {path.name for path in Path("made").iterdir()} == {"onnx", "onnx.verdict.json"}
    assert {path.name for path in Path("made", "onnx").iterdir()} >= {"vae_decoder.onnx", "graphs.json"}
    assert cli.main(["inspect", "made/onnx"]) == 0
    assert "graphs, onnx, intact" in capsys.readouterr().out


def test_float16_is_half_as_large(call: Any, tmp_path: Path) -> None:
    assert call("--to", "kohya", "--static", "mean", "--dtype", "float16") == 0
    found = load_file(tmp_path / "out" / "me-kohya.safetensors")
    assert {tensor.dtype for name, tensor in found.items() if not name.endswith(".alpha")} == {torch.float16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "kohya"], "what is to be exported? Give --subject"),
        (["--to", "gguf"], "--to 'gguf' must be one of kohya, diffusers"),
        (["--to", "prompt-schedule"], "Give --card"),
    ],
)
def test_what_is_missing_is_said(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_only_the_last_folder_is_made(tmp_path: Path) -> None:
    assert export_module.make_folder(tmp_path / "a").is_dir()
    with pytest.raises(ValueError, match="does not exist"):
        export_module.make_folder(tmp_path / "b" / "c")
