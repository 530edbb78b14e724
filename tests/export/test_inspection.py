"""`promptnet inspect` knows what a file is, and whether it is intact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from promptnet import cli
from promptnet.export import ExportError, Passport, write_files
from promptnet.export.inspection import inspect_file
from promptnet.inference.editing.card import EditCard


def flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_subject(pipes: dict[str, Any], make_subject: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    make_subject(pipes["sd"]).save(path)
    found = inspect_file(path)
    assert (found.kind, found.is_intact) == ("subject", True)
    assert found.about["class word"] == "person"
    flip_last_byte(path)
    found = inspect_file(path)
    assert (found.kind, found.is_intact) == ("subject", False)
    assert "altered" in found.about["problem"]


def test_an_edit_card(tmp_path: Path) -> None:
    path = tmp_path / "hat.safetensors"
    EditCard(torch.tensor([1.0, 0.0]), "dog", "hat", "DDIMScheduler", 3.0, {"unet": "abc"}).save(path)
    assert (inspect_file(path).kind, inspect_file(path).is_intact) == ("edit card", True)
    flip_last_byte(path)
    assert inspect_file(path).is_intact is False


@pytest.mark.parametrize("name", ["kohya", "diffusers", "peft", "textual-inversion"])
def test_exports(pipes: dict[str, Any], make_static: Any, passport: Passport, tmp_path: Path, name: str) -> None:
    path = write_files(make_static(pipes["sd"]), [name], tmp_path, "me", passport)[name]
    found = inspect_file(path)
    assert (found.kind, found.is_intact) == (f"export, {name}", True)
    assert found.about["licence"] == "mit"
    flip_last_byte(path if path.is_file() else next(path.glob("*.safetensors")))
    assert inspect_file(path).is_intact is False


def test_models(bases: dict[str, Path]) -> None:
    assert inspect_file(bases["sd"]).about["pipeline"] == "StableDiffusionPipeline"
    assert inspect_file(bases["sd"] / "unet").about["class"] == "UNet2DConditionModel"
    assert inspect_file(bases["sd"] / "unet" / "diffusion_pytorch_model.safetensors").kind == "network"


def test_a_checkpoint(tmp_path: Path) -> None:
    from promptnet.training.run.manifest import seal

    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "state").write_bytes(b"123")
    seal(draft, tmp_path / "step", number=1, step=2)
    assert (inspect_file(tmp_path / "step").kind, inspect_file(tmp_path / "step").is_intact) == ("checkpoint", True)
    (tmp_path / "step" / "state").write_bytes(b"124")
    assert inspect_file(tmp_path / "step").is_intact is False


def test_an_image_with_our_metadata(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("promptnet", '{"prompt": "S* hat"}')
    Image.new("RGB", (8, 8)).save(tmp_path / "ours.png", pnginfo=info)
    assert inspect_file(tmp_path / "ours.png").about == {"promptnet": '{"prompt": "S* hat"}'}
    assert inspect_file(tmp_path / "ours.png").is_intact
    data = bytearray((tmp_path / "ours.png").read_bytes())
    data[-20] ^= 1  # in the pixels' check sum
    (tmp_path / "broken.png").write_bytes(data)
    assert inspect_file(tmp_path / "broken.png").is_intact is False
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    with pytest.raises(ExportError, match="without metadata"):
        inspect_file(tmp_path / "other.png")


def test_what_is_not_ours(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    for name, message in (
        ("x.safetensors", "nothing that promptnet writes"),
        ("", "is a folder, but nothing"),
        ("nowhere", "does not exist"),
    ):
        with pytest.raises(ExportError, match=message):
            inspect_file(tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-1])
    with pytest.raises(ExportError, match="cut short"):
        inspect_file(tmp_path / "cut.safetensors")


def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hat.safetensors"
    EditCard(torch.tensor([1.0, 0.0]), "dog", "hat", "DDIMScheduler", 3.0, {"unet": "abc"}).save(path)
    assert cli.main(["inspect", str(path)]) == 0
    assert f"{path}: edit card, intact" in capsys.readouterr().out
    flip_last_byte(path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", str(path)])
    assert ended.value.code == 1
    assert cli.main(["inspect", str(tmp_path / "nowhere")]) == 2
