"""An encoder that does not look at x_t learns the mean of what one that does says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from promptnet import PromptNetModel
from promptnet.cli import main
from promptnet.commands import train_table_encoder as command
from promptnet.datasets.stream import sample_noise
from promptnet.training.pretrain.stage import PretrainStage
from promptnet.training.pretrain.table_stage import TableEncoderStage
from tests.base_models import write_base
from tests.training.pretrain.test_stage import batch_of

SMALL: dict[str, Any] = {"region_kernel_size": 2, "region_proj_channel": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, and an encoder for it in the folder `teacher`."""
    folder = write_base(tmp_path_factory.mktemp("sd"), "sd")
    torch.manual_seed(1)
    stage = PretrainStage(str(folder), str(folder / "out"), vision_id=str(folder / "vision"), **SMALL)
    stage.promptnet.save_pretrained(str(folder / "teacher"))
    return folder


@pytest.fixture
def stage(base: Path) -> TableEncoderStage:
    given = {"teacher_dir": str(base / "teacher"), "vision_id": str(base / "vision"), **SMALL}
    return TableEncoderStage(str(base), str(base / "out"), **given)


def test_a_new_encoder_of_the_kind_makes_words_of_t_alone(base: Path):
    torch.manual_seed(1)
    made = PretrainStage(str(base), str(base / "out"), vision_id=str(base / "vision"), with_noise=False, **SMALL)
    assert made.promptnet.config["with_noise"] is False
    reference, vision = made._latents(batch_of(), "reference", "validation"), made._reference_vision(batch_of())
    words = [
        made.promptnet(reference, 500, vision, noisy_latents=torch.randn_like(reference)).pseudo_words for _ in "ab"
    ]
    assert torch.equal(*words)


def test_an_encoder_that_training_starts_from_keeps_its_kind_unless_told(base: Path):
    given: dict[str, Any] = {"vision_id": str(base / "vision"), "start_from": str(base / "teacher"), **SMALL}
    assert PretrainStage(str(base), str(base / "out"), **given).promptnet.with_noise
    changed = PretrainStage(str(base), str(base / "out"), with_noise=False, **given).promptnet
    assert not changed.with_noise
    assert changed.config["with_noise"] is False


def test_the_goal_is_the_mean_of_the_teachers_words_over_noise(stage: TableEncoderStage, base: Path):
    teacher: Any = PromptNetModel.from_pretrained(base / "teacher")
    batch = batch_of()
    (reference, target), vision = stage._pair(batch, "validation"), stage._reference_vision(batch)
    timesteps = torch.tensor([100, 700])
    alphas = stage.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    singles = []
    for number in range(stage.num_noises):
        noise = sample_noise(0, batch["sample"], f"noise {number} of the teacher", tuple(target.shape[1:]))
        noisy = alphas.sqrt() * target + (1 - alphas).sqrt() * noise
        with torch.no_grad():
            singles.append(teacher(reference, timesteps, vision, noisy_latents=noisy).pseudo_words)
    found = stage.mean_words(reference, target, vision, timesteps, batch["sample"])
    torch.testing.assert_close(found, torch.stack(singles).mean(dim=0), rtol=1e-5, atol=1e-6)
    assert not torch.equal(singles[0], singles[1])


def test_the_distance_to_the_teacher_falls_and_the_teacher_stays(stage: TableEncoderStage):
    batch = batch_of()
    before = [weight.clone() for weight in stage.frozen["teacher"].parameters()]
    optimizer = torch.optim.Adam(stage.promptnet.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = stage.words_distance(batch, "train")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, stage.frozen["teacher"].parameters(), strict=True))
    assert not stage.promptnet.with_noise


def test_what_cannot_be_distilled_is_refused(base: Path, tmp_path: Path):
    given: dict[str, Any] = {"vision_id": str(base / "vision"), **SMALL}
    with pytest.raises(ValueError, match="say teacher_dir"):
        TableEncoderStage(str(base), str(tmp_path), **given)
    with pytest.raises(ValueError, match="num_noises=0"):
        TableEncoderStage(str(base), str(tmp_path), teacher_dir=str(base / "teacher"), num_noises=0, **given)
    table: Any = PromptNetModel.from_pretrained(base / "teacher")
    table.register_to_config(with_noise=False)
    table.save_pretrained(tmp_path / "table")
    with pytest.raises(ValueError, match="a table already"):
        TableEncoderStage(str(base), str(tmp_path), teacher_dir=str(tmp_path / "table"), **given)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", "t", "--no-distil"], "leave out --no-distil"),
        (["--steps", "0"], "steps"),
        (["--denoising-weight", "-1"], "at least 0"),
        (["--base", "tests"], "say which one by --teacher"),
    ],
)
def test_the_command_refuses(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train-table-encoder", "--out", str(tmp_path / "encoder"), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["distil", "no-distil"])
def test_the_command_trains_an_encoder_that_draws(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from promptnet import PromptNetPipeline

    monkeypatch.setattr(command, "_data", few_images(command._data, tmp_path))
    words = ["--out", str(tmp_path / "encoder"), "--steps", "2", "--batch-size", "2", "--num-images", "8"]
    assert main(["train-table-encoder", *words, f"--{how}", "--device", "cpu"]) == 0
    encoder: Any = PromptNetModel.from_pretrained(tmp_path / "encoder")
    pipe: Any = PromptNetPipeline.from_pretrained("checkpoints/tiny", promptnet=encoder)
    calls: list[int] = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    subject = pipe.encode(torch_image())
    pipe("a portrait of S*", subject=subject, num_inference_steps=3, output_type="latent")
    assert calls == [1]


def few_images(data: Any, folder: Path) -> Any:
    """The command's data, rendered into a folder of the test's."""
    return lambda *given: [*data(*given), f"--data.cache_dir={folder / 'avatars'}"]


def torch_image() -> Any:
    from promptnet.datasets.avatars.person import sample_avatar
    from promptnet.datasets.avatars.render import render_avatar

    return render_avatar(sample_avatar(0, 0, "validation"), 64)
