"""The stages of the embedded model: soft words, what each kind of prompt is, and whole short runs."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from promptnet.datasets.avatars.captions import mentioned
from promptnet.datasets.avatars.latents import encoder_hash
from promptnet.datasets.avatars.module import AvatarDataModule, JudgeDataModule, PairDataModule
from promptnet.datasets.avatars.person import FIELDS, sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.datasets.avatars.rendered import avatar_of, twin_of
from promptnet.datasets.avatars.vectors import COLOR_WORDS, NUM_EXACT, num_record_numbers
from promptnet.datasets.weights_hash import weights_hash
from promptnet.inference.pipeline import PromptNetPipeline
from promptnet.models.judge import AvatarJudge
from promptnet.models.tiny import train_tokenizer
from promptnet.training.callbacks.held_out_people import held_out_people
from promptnet.training.embedded.clip import ClipStage, exact_errors
from promptnet.training.embedded.encoder import AvatarPretrainStage
from promptnet.training.embedded.judge import JudgeStage
from promptnet.training.embedded.soft_words import RecordEncoder, SoftWords, mixed, perturbed
from promptnet.training.embedded.unet import BaseModelStage
from tests.people_base import write_people_base

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    module = AvatarDataModule(8, 4, 8, cache_dir=str(tmp_path_factory.mktemp("people")), shard_size=8)
    module.setup()
    return next(iter(module.train_dataloader()))


@pytest.fixture(scope="module")
def stage(base: Path) -> BaseModelStage:
    return BaseModelStage(base_dir=str(base), judge_dir="none", channels=(32, 32, 64))


def test_an_exact_centre_is_its_own_word_and_a_colour_between_lies_between(stage: BaseModelStage):
    table = stage.frozen["text_encoder"].get_input_embeddings().weight
    weights = torch.tensor([float(word == ("skin", "tan")) for word in COLOR_WORDS]).view(1, -1)
    prompts, words = stage.soft_words.of(["a person with tan skin, on a pink background"], weights + 0, table, [True])
    assert prompts == ["a person with S1* skin, on a S3* background"]
    tan = stage.tokenizer("tan", add_special_tokens=False).input_ids[0]
    assert torch.allclose(words[0]["S1*"][0], table[tan], atol=1e-6)
    prompts, words = stage.soft_words.of(["tan skin"], weights, table, [False])
    assert (prompts, words) == (["tan skin"], [{}])


def test_mixtures_are_as_long_as_their_words():
    words = torch.eye(4)
    found = mixed(torch.tensor([[0.5, 0.5, 0.0, 0.0]]), words)
    assert found.norm() == pytest.approx(1.0)
    assert found[0, 0] == found[0, 1]


def test_perturbation_is_a_function_of_the_sample_and_of_the_asked_length():
    words = [{"S*": torch.zeros(4, 192)}, {"S*": torch.zeros(4, 192)}]
    found = perturbed(words, torch.tensor([3, 4]), 0.2)
    assert found[0]["S*"].norm(dim=1).mean() == pytest.approx(0.2, rel=0.1)
    assert torch.equal(found[1]["S*"], perturbed(words[1:], torch.tensor([4]), 0.2)[0]["S*"])
    assert not torch.equal(found[0]["S*"], found[1]["S*"])


def test_record_words_have_the_words_norm_and_tell_records_apart():
    encoder = RecordEncoder(width=16, word_norm=0.3)
    words = encoder(torch.randn(5, num_record_numbers()))
    assert words.shape == (5, 4, 16)
    assert torch.allclose(words.norm(dim=-1), torch.tensor(0.3))
    assert len(words.flatten(1).unique(dim=0)) == 5


def test_split_colour_words_are_refused():
    with pytest.raises(ValueError, match="splits fair"):
        SoftWords(train_tokenizer(["a portrait"]))


def test_each_kind_of_prompt_reaches_the_text_encoder(stage: BaseModelStage, batch: dict[str, Any]):
    with torch.no_grad():
        states = {
            kind: stage.states(batch, [kind] * 8, noise=0.0) for kind in ("empty", "plain", "soft", "record", "mixture")
        }
    assert all(value.shape == (8, 48, 192) for value in states.values())
    assert torch.allclose(states["empty"], states["empty"][:1].expand(8, -1, -1), atol=1e-5)
    for kind in ("plain", "soft", "record", "mixture"):
        assert not torch.allclose(states[kind][0], states[kind][1], atol=1e-3)
    others = dict(batch, record=batch["record"].roll(1, 0))
    assert not torch.allclose(stage.states(others, ["record"] * 8, noise=0.0), states["record"], atol=1e-3)


def test_the_record_encoder_learns_through_text_encoder_and_unet(stage: BaseModelStage, batch: dict[str, Any]):
    stage.latents = {"train": torch.randn(8, 4, 16, 16)}
    stage._loss(batch, "train", ["record"] * 8).backward()
    gradient = stage.record_encoder.embedding_out.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert all(value.grad is None for value in stage.frozen["text_encoder"].parameters())


def test_shares_have_to_sum_to_one(base: Path):
    with pytest.raises(ValueError, match="sum to one"):
        BaseModelStage(shares=(0.5, 0.5, 0.5, 0.0, 0.0), base_dir=str(base), judge_dir="none")


def test_clip_reads_soft_words_and_learns(batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    stage = ClipStage(soft=1.0, tokenizer_captions=2000)
    monkeypatch.setattr(stage, "log_dict", lambda *_, **__: None)
    optimizer = torch.optim.AdamW(stage.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        loss = stage.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_judge_learns_words_exact_values_and_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    module = JudgeDataModule(num_images=8, num_validation=4, batch_size=8, cache_dir=str(tmp_path))
    module.setup()
    batch, stage, logged = next(iter(module.train_dataloader())), JudgeStage(width=8), dict[str, list[float]]()

    def note(figures: dict[str, torch.Tensor], **_: Any) -> None:
        for name, value in figures.items():
            logged.setdefault(name, []).append(float(value.detach()))

    monkeypatch.setattr(stage, "log_dict", note)
    monkeypatch.setattr(stage, "log", lambda name, value, **_: note({name: value}))
    optimizer = torch.optim.AdamW(stage.parameters(), 2e-3)
    for _ in range(25):
        stage.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in ("train/words", "train/exact", "train/shape"):
        assert logged[name][-1] < 0.9 * logged[name][0], name
    with torch.no_grad():
        stage.validation_step(batch, 0)
    read = stage.judge.look(batch["pixels"])
    assert logged["val/hair"] == [float((read.words["hair"].argmax(1) == batch["codes"][:, 2]).float().mean())]
    assert {f"val/{field}" for field in FIELDS} <= set(logged)


def test_errors_of_colours_are_distances_in_cielab_and_geometry_is_apart():
    errors = torch.zeros(2, NUM_EXACT)
    errors[:, :3] = torch.tensor([[0.06, 0.0, 0.08], [0.0, 0.0, 0.0]])  # in units of 50: 5 and 0
    errors[:, 12:] = torch.tensor([[0.2], [-0.4]])
    found = {name: float(value) for name, value in exact_errors(errors).items()}
    assert found == pytest.approx(
        {
            "val/error_skin": 2.5,
            "val/error_hair_color": 0,
            "val/error_background": 0,
            "val/error_clothes_color": 0,
            "val/geometry": 0.3,
        }
    )


def _fit(config: str, folder: Path, *options: str) -> None:
    arguments = ["--run_dir", str(folder / "run"), "--data.init_args.cache_dir", str(folder / "people")]
    small = ["--data.init_args.shard_size=8", "--data.init_args.num_validation=8", "--data.init_args.batch_size=4"]
    limits = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
    command = [
        sys.executable,
        "train.py",
        "fit",
        "--config",
        f"configs/{config}.yaml",
        *arguments,
        *small,
        *limits,
    ]
    subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, timeout=300)


@pytest.mark.slow
def test_the_shipped_recipe_of_the_unet_runs_and_writes_unet_and_record_encoder(base: Path, tmp_path: Path):
    _fit("tiny/unet", tmp_path, f"--model.init_args.base_dir={base}", "--model.init_args.channels=[32,32,64]")
    for part in ("unet", "scheduler", "record_encoder"):
        assert list((base / part).iterdir())
    again = BaseModelStage(base_dir=str(base), judge_dir="none", start_from=str(base / "unet"))
    assert list(again.unet.config.block_out_channels) == [32, 32, 64]


def test_an_encoder_learns_the_teachers_words_first_and_the_noise_later(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = PairDataModule(num_images=4, num_validation=4, batch_size=2, cache_dir=str(tmp_path))
    module.setup()
    batch = next(iter(module.train_dataloader()))
    torch.manual_seed(0)
    how: dict[str, Any] = {"region_kernel_size": 1, "region_proj_channel": 8, "described_weight": 1.0}
    stage = AvatarPretrainStage(words_weight=2.0, words_only_steps=1, base_dir=str(base), **how)
    stage.latents, stage.reference_latents = ({"train": torch.randn(4, 4, 16, 16)} for _ in range(2))
    logged: dict[str, float] = {}
    monkeypatch.setattr(stage, "log", lambda name, value, **_: logged.update({name: float(value.detach())}))
    words_only = stage.training_step(batch, 0)
    assert list(logged) == ["train/words"]
    assert float(words_only.detach()) == pytest.approx(2 * logged["train/words"])
    words_only.backward()
    assert all(value.grad is None for value in stage.frozen["teacher"].parameters())
    monkeypatch.setattr(AvatarPretrainStage, "global_step", 1)
    whole = float(stage.training_step(batch, 0).detach())
    assert whole == pytest.approx(logged["train/loss"] + 2 * logged["train/words"])
    assert logged["train/loss"] > logged["train/described"] > 0


def test_an_encoder_with_other_words_than_the_teachers_is_refused(base: Path, tmp_path: Path):
    module = PairDataModule(num_images=2, num_validation=2, batch_size=2, cache_dir=str(tmp_path))
    module.setup()
    stage = AvatarPretrainStage(words_weight=1.0, base_dir=str(base), region_kernel_size=2, region_proj_channel=8)
    stage.latents, stage.reference_latents = ({"train": torch.randn(2, 4, 16, 16)} for _ in range(2))
    with pytest.raises(ValueError, match=r"pseudo-words \(1, 192\), the teacher \(4, 192\): choose region_kernel_size"):
        stage.words_distance(next(iter(module.train_dataloader())), "train")


@pytest.mark.slow
def test_the_shipped_recipe_of_the_encoder_runs_and_makes_a_pipeline(base: Path, tmp_path: Path):
    export = base / "promptnet"
    folders = [f"--model.init_args.base_dir={base}", f"--model.init_args.export_dir={export}"]
    _fit("pretrain/tiny", tmp_path, *folders, "--model.init_args.words_only_steps=1", "--trainer.callbacks=null")
    pipe: Any = PromptNetPipeline.from_pretrained(base)
    subject = pipe.encode(render_avatar(sample_avatar(0, 0, "test"), 64))
    images = pipe("a portrait of S*", subject=subject, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 64, 64, 3)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("val/words" in line for line in logged)


def test_an_encoder_without_a_teacher_says_how_to_get_one(base: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="words_only_steps=3"):
        AvatarPretrainStage(words_only_steps=3, base_dir=str(base))
    shutil.copytree(base, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "record_encoder")
    with pytest.raises(ValueError, match=r"unet\.yaml"):
        AvatarPretrainStage(words_weight=1.0, base_dir=str(tmp_path / "base"))


@pytest.mark.slow
def test_the_shipped_recipe_of_the_judges_runs_and_a_judge_reads_words_colours_and_shapes(tmp_path: Path):
    _fit("tiny/judge-validation", tmp_path, f"--model.init_args.export_dir={tmp_path / 'judge'}")
    judge: Any = AvatarJudge.from_pretrained(tmp_path / "judge")
    with torch.no_grad():
        reading = judge.float().look(torch.zeros(2, 3, 64, 64))
    assert set(reading.words) == set(FIELDS)
    assert reading.exact.shape == (2, NUM_EXACT)
    assert torch.allclose(reading.shape.norm(dim=1), torch.ones(2))


def test_held_out_people_keep_what_the_prompt_leaves_out(tmp_path: Path):
    module = AvatarDataModule(8, 8, 4, cache_dir=str(tmp_path), shard_size=8)
    people = held_out_people(module, 3, 2, seed=0)
    for place, person in enumerate(people):
        before = sample_avatar(0, place, "validation").record()
        for ask in person.eval_prompts:
            assert ask.asked == mentioned(ask.prompt)
            assert all(before[field] != word for field, word in ask.asked.items())
            assert ask.truth is not None
            assert ask.truth.tobytes() != person.reference.tobytes()


def test_a_twin_has_the_same_shapes_in_other_colours():
    for index in range(20):
        mine, twin = avatar_of(0, index, "judge", "all").identity, twin_of(0, index, "judge", "all").identity
        assert replace(twin, skin=mine.skin, hair_color=mine.hair_color) == mine
        assert mine.skin != twin.skin


@pytest.mark.slow
def test_a_decoder_goes_on_alone_and_leaves_latents_as_they_are(base: Path, tmp_path: Path):
    before: Any = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float16)
    before.save_pretrained(tmp_path / "old")
    options = {"decoder_from": tmp_path / "old", "export_dir": tmp_path}
    _fit("tiny/vae", tmp_path, *(f"--model.init_args.{name}={folder}" for name, folder in options.items()))
    after: Any = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert encoder_hash(after.float()) == encoder_hash(before.float())
    assert weights_hash(after.decoder) != weights_hash(before.decoder)
