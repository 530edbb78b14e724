"""`promptnet edit` and `promptnet learn-edit` with stand-ins for the models: passed arguments and errors."""

import math
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from PIL import Image

from promptnet import PromptNetPipeline, cli
from promptnet.commands import _loading
from promptnet.commands import edit as edit_module
from promptnet.commands import learn_edit as optimize_module
from promptnet.evaluation.edits.cards import Learning
from promptnet.evaluation.edits.compare import Images
from promptnet.inference.editing import edit_image as mixing_images
from promptnet.inference.editing.card import EditCard, edit_fingerprint
from promptnet.training.editing.losses import DirectionalClip
from tests.training.editing.edit_base import build_edit_base


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Record the calls of `edit_image`, in an empty folder that holds one card."""
    noted: list[Any] = []

    def edit_image(pipe: Any, image: Any, cards: Any, **options: Any) -> list[Image.Image]:
        noted.append((pipe, image, cards, options))
        return [Image.new("RGB", (8, 8), "grey")]

    monkeypatch.setattr(edit_module, "load_pipeline", lambda *_: SimpleNamespace(scheduler=DDIMScheduler()))
    monkeypatch.setattr(mixing_images, "edit_image", edit_image)
    monkeypatch.chdir(tmp_path)
    EditCard(torch.tensor([1.0, 0.0]), "a", "b", "PNDMScheduler", 3.0, {}).save("card.safetensors")
    Path("in.png").touch()
    return noted


def test_edit_passes_its_arguments_on(calls: list[Any]):
    words = ["--image", "in.png", "--card", "card.safetensors", "--strength", "0.5", "--out", "out.png", "--crop"]
    assert cli.main(["edit", *words]) == 0
    ((pipe, image, cards, options),) = calls
    assert Image.open("out.png").size == (8, 8)
    assert (str(image), options["crop"], options["mask"]) == ("in.png", True, None)
    assert [card.weights.tolist() for card in cards] == [[1.0, 0.5]]
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"
    assert pipe.scheduler.config.skip_prk_steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "out.png"], "either --image or --subject"),
        (["--image", "a.png", "--subject", "b.safetensors", "--out", "out.png"], "either --image or --subject"),
        (["--image", "a.png", "--out", "out.txt"], "must end in"),
        (["--image", "a.png", "--out", "nowhere/deeper/out.png"], "does not exist"),
        (["--image", "a.png", "--out", "out.png", "--card", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_edit_reports_errors_in_one_line(
    calls: list[Any], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["edit", "--card", "card.safetensors", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not calls


def test_learn_edit_builds_the_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from promptnet.training.editing import stage as disentangle

    noted: dict[str, Any] = {}

    def stage(*prompts: str, **options: Any) -> str:
        noted.update(options, prompts=prompts)
        return "stage"

    def fit(stage: Any, data: Any, device: str, iterations: int) -> None:
        noted.update(stage=stage, data=data, iterations=iterations)

    monkeypatch.setattr(disentangle, "EditStage", stage)
    monkeypatch.setattr(_loading, "find_base", lambda base: base)
    monkeypatch.setattr(optimize_module, "fit", fit)
    monkeypatch.chdir(tmp_path)
    words = ["--from", "a person", "--to", "a happy person", "--out", "card.safetensors", "--steps", "7"]
    assert cli.main(["learn-edit", *words, "--num-seeds", "3", "--device", "cpu"]) == 0
    assert noted["prompts"] == ("a person", "a happy person", "card.safetensors", "checkpoints/tiny")
    assert (noted["num_steps"], noted["images"], noted["iterations"]) == (7, [], 10)
    assert (noted["data"].num_seeds, noted["data"].batch_size) == (3, 3)
    assert [part.name for part in noted["parts"]] == ["perceptual", "direction"]
    (tmp_path / "checkpoints" / "judges" / "validation").mkdir(parents=True)
    (tmp_path / "checkpoints" / "judges" / "validation" / "config.json").write_text("{}")
    assert cli.main(["learn-edit", *words, "--keep-all-but", "expression", "clothes"]) == 0
    judge = noted["parts"][2]
    assert (judge.name, judge.changed, Path(judge.judge_dir).name) == ("kept", ["expression", "clothes"], "validation")
    assert cli.main(["learn-edit", *words, "--show", "expression=happy", "--keep-all-but", "expression"]) == 0
    shown, kept = noted["parts"][2:]
    assert (shown.name, shown.asked, kept.name) == ("shown", {"expression": "happy"}, "kept")
    assert shown.judge_dir == kept.judge_dir
    assert cli.main(["learn-edit", *words, "--iterations", "0"]) == 2


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (["happy"], "show 'happy' is not FIELD=VALUE"),
        (["expression="], "is not FIELD=VALUE"),
        (["expression=happy", "expression=sad"], "names 'expression' twice, as 'happy' and as 'sad'"),
    ],
)
def test_learn_edit_rejects_invalid_fields(
    shown: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--from", "a", "--to", "b", "--out", str(tmp_path / "card.safetensors"), "--show", *shown]
    assert cli.main(["learn-edit", *words]) == 2
    assert message in capsys.readouterr().err


def test_learn_edit_names_a_clip_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--from", "a", "--to", "b", "--out", str(tmp_path / "card.safetensors"), "--clip", str(tmp_path / "none")]
    assert cli.main(["learn-edit", *words]) == 2
    assert f"error: --clip '{tmp_path / 'none'}' does not exist" in capsys.readouterr().err


def test_defaults_equal_those_of_the_recipe_and_the_evaluation():
    recipe = yaml.safe_load((Path(__file__).parents[2] / "configs/disentangle/smile.yaml").read_text("utf-8"))
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    ours = {name: parameter.default for name, parameter in signature(optimize_module.learn_edit).parameters.items()}
    how, images = Learning(), Images()
    for name, *others in (
        ("num_seeds", data["num_seeds"], images.learned_on),
        ("batch_size", data["batch_size"], how.batch_size),
        ("steps", model["num_steps"], how.num_steps),
        ("iterations", recipe["trainer"]["max_steps"], how.iterations),
        ("guidance_scale", model["guidance_scale"], how.guidance_scale),
        ("learning_rate", model["learning_rate"], how.learning_rate),
        ("preserve", model["parts"][0]["init_args"]["weight"], how.preserve),
        ("scheduler", how.scheduler),
    ):
        assert others == [ours[name]] * len(others), name


# --- the real thing -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of random weights."""
    return build_edit_base(tmp_path_factory.mktemp("base"))


def test_a_card_is_learned_and_edits_an_image(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    common = ["--base", str(base), "--device", "cpu"]
    learn = ["--from", "a portrait of a person", "--to", "a happy portrait of a person", "--out", "smile.safetensors"]
    few = ["--steps", "3", "--iterations", "2", "--num-seeds", "2"]
    assert cli.main(["learn-edit", *learn, *few, *common]) == 0
    card = EditCard.load("smile.safetensors")
    assert (card.weights - torch.tensor([1.0, 0.0, 0.0])).abs().min() > 1e-3
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save("in.png")
    for strength in ("0", "1"):
        words = ["--image", "in.png", "--card", "smile.safetensors", "--strength", strength]
        assert cli.main(["edit", *words, "--out", f"{strength}.png", *common]) == 0
    assert Image.open("0.png").size == (64, 64)
    assert Path("0.png").read_bytes() != Path("1.png").read_bytes()


def save_image(path: Path, width_px: int = 64) -> None:
    Image.linear_gradient("L").resize((width_px, 64)).convert("RGB").save(path)


def save_words(path: Path) -> None:
    path.write_text("no image")


def save_cut_short(path: Path) -> None:
    save_image(path)
    path.write_bytes(path.read_bytes()[:-100])


def save_card(base: Path, path: Path, weights: Any = (1.0, 0.0, 0.0), **change: Any) -> None:
    """Save a card of the base model, possibly a wrong one with a right hash."""
    from promptnet.inference.editing.card import KIND

    pipe = PromptNetPipeline.from_pretrained(base)
    texts = {"neutral": "a portrait", "styled": "a happy portrait", "scheduler": "DDIMScheduler", "base": "learned"}
    more = {"guidance_scale": 2.0, "fingerprint": edit_fingerprint(pipe), "schedule": {}}
    KIND.save(path, {**texts, **more, **change}, {"weights": torch.tensor(weights)})


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (
            lambda path: save_image(path, 80),
            "The image has 80x64 pixels, but this base model draws 64x64: resize it, or ask for its central square",
        ),
        (save_words, "'in.png' is not an image in one of the formats PNG, JPEG, WEBP, BMP, GIF"),
        (save_cut_short, "'in.png' is broken or cut short"),
    ],
)
def test_edit_rejects_an_image_and_writes_none(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    save_card(base, Path("card.safetensors"))
    save(Path("in.png"))
    assert message in failed_edit(base, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fingerprint": {"unet": "0" * 16}},
            "the weights of unet, text_encoder differ. Load the base model it was learned in, or learn it again with "
            "`promptnet learn-edit`.",
        ),
        ({"weights": (1.0, math.nan, 0.0)}, "weights that are not finite: learn the edit again with a lower"),
        ({"weights": (1.0, math.inf, 0.0)}, "weights that are not finite: learn the edit again with a lower"),
        ({"styled": "a happy portrait " * 40}, "tokens, but the text encoder reads 48: shorten it"),
        ({"neutral": "a portrait " * 60}, "tokens, but the text encoder reads 48: shorten it"),
    ],
)
def test_edit_rejects_a_card_and_writes_no_image(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    save_image(Path("in.png"))
    save_card(base, Path("card.safetensors"), **change)
    assert message in failed_edit(base, capsys)


def failed_edit(base: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error of `promptnet edit` on in.png and card.safetensors, which must leave no other file."""
    words = ["--image", "in.png", "--card", "card.safetensors", "--out", "out.png", "--no-crop", "--base", str(base)]
    capsys.readouterr()  # the bars of making the card
    assert cli.main(["edit", *words, "--device", "cpu"]) == 2
    assert {path.name for path in Path().iterdir()} == {"in.png", "card.safetensors"}
    return one_line(capsys)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error: all of stderr but for the empty line that a bar leaves without a terminal."""
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def few_words(base: Path, *words: str) -> list[str]:
    """Return the words of `promptnet learn-edit` with few steps."""
    learn = ["--from", "a person", "--to", "a happy person", "--out", "card.safetensors", "--base", str(base)]
    return ["learn-edit", *learn, "--device", "cpu", "--steps", "2", *words]


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (save_words, "'in.png' is not an image in one of the formats PNG, JPEG, WEBP, BMP, GIF"),
        (save_cut_short, "'in.png' is broken or cut short"),
        (Path.mkdir, "'in.png' is a folder: name one image in it"),
    ],
)
def test_learn_edit_rejects_an_image_and_writes_no_card(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    save(Path("in.png"))
    assert cli.main(few_words(base, "--image", "in.png")) == 2
    assert message in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_learn_edit_writes_no_card_of_weights_that_are_not_numbers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def nan(self: DirectionalClip, image: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        return math.nan * image.flatten(1).mean(1)

    monkeypatch.setattr(DirectionalClip, "__call__", nan)
    monkeypatch.chdir(tmp_path)
    assert cli.main(few_words(base, "--iterations", "2", "--num-seeds", "1")) == 2
    assert "the loss is nan at iteration 1 of 2. Lower learning_rate=" in one_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base", "owner/name"], "base model 'owner/name' is not a folder in diffusers layout"),
        (["--base", "absent"], "base model 'absent' does not exist"),
        (["--to", "a happy portrait " * 40], "but the text encoder reads 48"),
        (["--to", "a person"], "are the same to the text encoder"),
    ],
)
def test_learn_edit_reports_errors_in_one_line(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    given = ["--from", "a person", "--to", "a happy person", "--out", "card.safetensors", "--base", str(base)]
    assert cli.main(["learn-edit", *given, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
