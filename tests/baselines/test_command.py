"""`promptnet customize --method`, on a base model that has no encoder, and what is made with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptnet import Subject, cli
from tests.baselines.conftest import picture

FAST = "steps: 2\nbatch_size: 2\nnum_views: 1\nprompts: [a S*]\nkeep: last\n"
PRIOR = "identifier: s\nprior_prompt: a\nnum_prior_images: 1\nprior_steps: 1\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    picture().save("me.png")
    return tmp_path


def customize(base: Path, method: str, out: str, *more: str, config: str = FAST) -> int:
    Path("method.yaml").write_text(config)
    words = ["--image", "me.png", "--out", out, "--class-word", "man", "--no-preview", "--device", "cpu"]
    words += ["--base", str(base), "--method", method, "--method-config", "method.yaml"]
    return cli.main(["customize", *words, *more])


def generate(base: str, prompt: str, out: str, *more: str) -> np.ndarray:
    words = ["--prompt", prompt, "--out", out, "--base", base, "--steps", "2", "--device", "cpu"]
    assert cli.main(["generate", *words, *more]) == 0
    return np.asarray(Image.open(out).convert("RGB"), dtype=int)


@pytest.mark.parametrize("method", ["textual-inversion", "dreambooth-lora"])
def test_a_base_model_without_an_encoder_gets_a_subject(method, bases, here):
    base, config = bases["sd"], FAST + (PRIOR if method == "dreambooth-lora" else "")
    assert customize(base, method, "me.safetensors", config=config) == 0
    assert not Subject.load("me.safetensors").needs_encoder
    image = generate(str(base), "a S*", "a.png", "--subject", "me.safetensors")
    assert image.shape == (32, 32, 3)
    assert (image != generate(str(base), "a man", "b.png")).any()
    assert generate(str(base), "a S*", "c.png", "--subject", "me.safetensors", "--size", "64x32").shape == (32, 64, 3)


def test_dreambooth_writes_a_base_model_that_the_service_refuses(bases, here):
    assert customize(bases["sd"], "dreambooth", "own", config=FAST + PRIOR + "learning_rate: 0.01\n") == 0
    assert json.loads(Path("own/dreambooth.json").read_text())["prompt"] == "a photo of s man"
    assert (generate("own", "a s man", "a.png") != generate(str(bases["sd"]), "a s man", "b.png")).any()
    from promptnet.serve.settings import Settings
    from promptnet.serve.worker_process import load_pipeline

    with pytest.raises(ValueError, match="DreamBooth's, of one person alone"):
        load_pipeline(Settings(base="own", data=here, device="cpu"))


def test_e4t_is_pretrained_and_tuned(bases, here):
    vision = str(bases["sd"] / "vision")
    Path("faces").mkdir()
    for seed in range(3):
        picture(seed).save(f"faces/{seed}.png")
    words = ["--images", "faces", "--out", "e4t", "--steps", "2", "--batch-size", "2", "--class-word", "man"]
    words += ["--prompt", "a S*", "--base", str(bases["sd"]), "--image-encoder", vision, "--device", "cpu"]
    assert cli.main(["pretrain-e4t", *words]) == 0
    given = ("--e4t", "e4t", "--image-encoder", vision)
    assert customize(bases["sd"], "e4t", "me.safetensors", *given) == 0
    assert Subject.load("me.safetensors").class_word == "man"
    generate(str(bases["sd"]), "a S*", "a.png", "--subject", "me.safetensors")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "e4t"], "--e4t go together"),
        (["--e4t", "x"], "--e4t go together"),
        (["--method-config", "x.yaml"], "is of the baselines"),
        (["--method", "textual-inversion", "--promptnet", "x"], "means nothing with --method"),
        (["--method", "dreambooth"], "must be a folder"),
        (["--method", "textual-inversion", "--method-config", "x.yaml"], "does not exist"),
        ([], "has no promptnet"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_loaded(words, message, bases, here, capsys):
    given = ["--image", "me.png", "--out", "me.safetensors", "--base", str(bases["sd"]), *words]
    assert cli.main(["customize", *given]) == 2
    assert message in capsys.readouterr().err
