"""`promptnet edit` and `promptnet optimize-edit`: what they hand on and refuse, with stand-ins for the models."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from promptnet import cli
from promptnet.commands import edit as edit_module
from promptnet.commands import optimize_edit as optimize_module
from promptnet.inference import mixing_pictures
from promptnet.inference.mixing import MixingWeights


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What `edit_picture` is called with, in an empty folder that holds one card."""
    noted: list[Any] = []

    def edit_picture(pipe: Any, picture: Any, cards: Any, **options: Any) -> list[Image.Image]:
        noted.append((pipe, picture, cards, options))
        return [Image.new("RGB", (8, 8), "grey")]

    monkeypatch.setattr(edit_module, "load_pipeline", lambda *_: SimpleNamespace(scheduler=DDIMScheduler()))
    monkeypatch.setattr(mixing_pictures, "edit_picture", edit_picture)
    monkeypatch.chdir(tmp_path)
    MixingWeights(torch.tensor([1.0, 0.0]), "a", "b", "PNDMScheduler", 3.0, {}).save("card.safetensors")
    return noted


def test_edit_hands_on_what_it_was_given(calls: list[Any]):
    words = ["--image", "in.png", "--card", "card.safetensors", "--strength", "0.5", "--out", "out.png", "--crop"]
    assert cli.main(["edit", *words]) == 0
    ((pipe, picture, cards, options),) = calls
    assert Image.open("out.png").size == (8, 8)
    assert (str(picture), options["crop"], options["mask"]) == ("in.png", True, None)
    assert [card.weights.tolist() for card in cards] == [[1.0, 0.5]]
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"
    assert pipe.scheduler.config.skip_prk_steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "out.png"], "either --image or --subject"),
        (["--image", "a.png", "--subject", "b.safetensors", "--out", "out.png"], "either --image or --subject"),
        (["--image", "a.png", "--out", "out.txt"], "must end in"),
        (["--image", "a.png", "--out", "nowhere/out.png"], "does not exist"),
        (["--image", "a.png", "--out", "out.png", "--card", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_edit_refuses_in_one_line(calls: list[Any], words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["edit", "--card", "card.safetensors", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not calls


def test_optimize_edit_builds_the_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from promptnet.training import disentangle

    noted: dict[str, Any] = {}

    def stage(*prompts: str, **options: Any) -> str:
        noted.update(options, prompts=prompts)
        return "stage"

    def fit(stage: Any, data: Any, device: str, iterations: int) -> None:
        noted.update(stage=stage, data=data, iterations=iterations)

    monkeypatch.setattr(disentangle, "DisentangleStage", stage)
    monkeypatch.setattr(optimize_module, "find_base", lambda base: base)
    monkeypatch.setattr(optimize_module, "fit", fit)
    monkeypatch.chdir(tmp_path)
    words = ["--from", "a person", "--to", "a happy person", "--out", "card.safetensors", "--steps", "7"]
    assert cli.main(["optimize-edit", *words, "--num-seeds", "3", "--device", "cpu"]) == 0
    assert noted["prompts"] == ("a person", "a happy person", "card.safetensors", "checkpoints/tiny")
    assert (noted["num_steps"], noted["pictures"], noted["iterations"]) == (7, [], 20)
    assert (noted["data"].num_seeds, noted["data"].batch_size) == (3, 3)
    assert [part.name for part in noted["parts"]] == ["perceptual", "direction"]
    assert cli.main(["optimize-edit", *words, "--iterations", "0"]) == 2
