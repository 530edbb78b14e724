"""Learning mixing weights: exact gradients, what trains, the parts of the loss, resuming, images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from promptnet import PromptNetPipeline, Subject
from promptnet.inference.editing.card import EditCard, EditError
from promptnet.inference.editing.edit_image import edit_image
from promptnet.inference.editing.inversion import make_scheduler
from promptnet.inference.editing.rule import Directions, Mixing
from promptnet.inference.references import decode_latents
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, Condition
from promptnet.inference.sampling.loop import UNetInputs
from promptnet.models.tiny import load_clip
from promptnet.training.editing.data import SeedDataModule
from promptnet.training.editing.judge_losses import JudgeEditSuccess, JudgePreservation
from promptnet.training.editing.learn import learn_card
from promptnet.training.editing.losses import (
    DirectionalClip,
    Edit,
    LossPart,
    VGGPerceptual,
    VisionPerceptual,
    feature_distance,
    normalised,
    repeated_and_pooled,
    soft_cosine,
)
from promptnet.training.editing.stage import EditStage, sample_pixels, weights_image
from tests.inference.conftest import build_unet as build_small_unet
from tests.training.editing.edit_base import build_edit_base

SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
NUM_STEPS = 5


# --- gradients ----------------------------------------------------------------------------------------------------


class Problem:
    """An image of mixing weights on small random networks in float64, and a number made of it."""

    def __init__(self, scheduler: str) -> None:
        self.unet = build_small_unet().double()
        vae = diffusers.AutoencoderKL(norm_num_groups=8, block_out_channels=(8,), latent_channels=4)
        self.vae = vae.double().eval().requires_grad_(False)
        config = {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "clip_sample": False,
            "steps_offset": 1,
        }
        self.scheduler = make_scheduler(scheduler, config)
        self.noise = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        uncond, neutral, styled = 3 * torch.randn(3, 1, 5, 32, dtype=torch.float64)
        given = [UNetInputs(states.expand(2, 5, 32)) for states in (uncond, neutral)]
        first, second = (Condition(lambda x, step, one=one: one) for one in given)
        self.guidance = ClassifierFreeGuidance(first, second, 3.0)
        self.directions = Directions(styled - neutral)
        self.reader = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def loss(self, weights: Tensor, *, checkpoint: bool = True) -> Tensor:
        self.scheduler.set_timesteps(NUM_STEPS)
        rules = [self.guidance, Mixing(weights[None], self.directions)]
        x = self.noise * self.scheduler.init_noise_sigma
        return (sample_pixels(self.unet, self.vae, self.scheduler, x, rules, checkpoint=checkpoint) * self.reader).sum()

    def gradient(self, weights: Tensor, *, checkpoint: bool = True) -> Tensor:
        weights = weights.clone().requires_grad_()
        return torch.autograd.grad(self.loss(weights, checkpoint=checkpoint), weights)[0]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_recomputed_gradients_are_those_of_the_whole_graph_and_of_differences(scheduler: str):
    problem, weights = Problem(scheduler), torch.linspace(0.9, 0.1, NUM_STEPS, dtype=torch.float64)
    gradient = problem.gradient(weights)
    whole = problem.gradient(weights, checkpoint=False)
    assert (gradient - whole).norm() <= 1e-5 * whole.norm()
    assert whole.abs().min() > 0

    # DPM-Solver++ and Euler step in float32 whatever they are given, which small differences would drown in.
    size, tolerance = (1e-5, 1e-5) if scheduler in ("DDIMScheduler", "PNDMScheduler") else (2e-2, 2e-2)
    with torch.no_grad():
        shifts = size * torch.eye(NUM_STEPS, dtype=torch.float64)
        found = [(problem.loss(weights + one) - problem.loss(weights - one)) / (2 * size) for one in shifts]
    assert (torch.stack(found) - gradient).norm() <= tolerance * gradient.norm()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_step_leaves_nothing_behind_but_its_latents(scheduler: str):
    """Counted with all that autograd saves; the graph's nodes too, of which a network has hundreds a call."""

    def kept(num_steps: int, checkpoint: bool = True) -> tuple[int, int]:
        problem, sizes = Problem(scheduler), {}
        weights = torch.ones(num_steps, dtype=torch.float64, requires_grad=True)
        problem.scheduler.set_timesteps(num_steps)
        rules = [problem.guidance, Mixing(weights[None], problem.directions)]
        x = problem.noise * problem.scheduler.init_noise_sigma

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            pixels = sample_pixels(problem.unet, problem.vae, problem.scheduler, x, rules, checkpoint=checkpoint)
        return sum(tensor.untyped_storage().nbytes() for tensor in sizes.values()), num_nodes(pixels)

    latents_bytes = 2 * 4 * 8 * 8 * 8
    (few_bytes, few_nodes), (many_bytes, many_nodes) = kept(4), kept(8)
    assert few_bytes >= 4 * latents_bytes
    assert latents_bytes <= (many_bytes - few_bytes) / 4 <= 1.1 * latents_bytes
    assert (many_nodes - few_nodes) / 4 < 60
    whole_bytes, whole_nodes = kept(4, checkpoint=False)
    assert whole_bytes > 50 * few_bytes
    assert whole_nodes > 5 * few_nodes


def num_nodes(tensor: Tensor) -> int:
    """How large the graph behind a tensor is."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return len(seen)


# --- the stage ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Diffusers folder of an untrained embedded model with a narrower U-Net."""
    return build_edit_base(tmp_path_factory.mktemp("base"))


def make_stage(base: Path, out: Path, **more: Any) -> EditStage:
    torch.manual_seed(0)
    prompts = ("a portrait of a person", "a happy portrait of a person")
    config: dict[str, Any] = {"num_steps": 3, "guidance_scale": 2.0, "image_every": 0, **more}
    return EditStage(*prompts, str(out), str(base), **config)


def fit(stage: EditStage, folder: Path, max_steps: int, checkpoint: Path | None = None, **data: Any) -> Any:
    trainer = L.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    data = {"num_seeds": 3, "batch_size": 2, **data}
    trainer.fit(stage, datamodule=SeedDataModule(**data), ckpt_path=checkpoint, weights_only=True)
    return trainer


def test_only_the_weights_train_and_the_card_is_written(base: Path, tmp_path: Path):
    stage = make_stage(base, tmp_path / "card.safetensors")
    assert {name: value.shape for name, value in stage.named_parameters()} == {"weights": (3,)}
    assert list(stage.state_dict()) == ["weights"]
    before = stage.weights.detach().clone()
    fit(stage, tmp_path, 2)
    card = EditCard.load(tmp_path / "card.safetensors")
    assert torch.equal(card.weights, stage.weights.detach())
    assert (card.weights - before).abs().min() > 1e-3
    assert (card.scheduler, card.guidance_scale, card.num_steps) == ("DDIMScheduler", 2.0, 3)
    pipe = diffusers.StableDiffusionPipeline(
        unet=stage.frozen["unet"],
        vae=stage.frozen["vae"],
        text_encoder=stage.frozen["text_encoder"],
        tokenizer=stage.tokenizer,
        scheduler=stage.scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    card.check(pipe, 3)


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(base: Path, tmp_path: Path):
    whole = make_stage(base, tmp_path / "whole.safetensors")
    fit(whole, tmp_path, 4)
    first = make_stage(base, tmp_path / "card.safetensors")
    fit(first, tmp_path, 2).save_checkpoint(tmp_path / "middle.ckpt")
    assert not torch.equal(first.weights, whole.weights)
    second = make_stage(base, tmp_path / "card.safetensors")
    fit(second, tmp_path, 4, tmp_path / "middle.ckpt")
    assert torch.equal(second.weights, whole.weights)


def test_a_resumed_run_learns_at_its_commands_rate(base: Path, tmp_path: Path):
    fit(make_stage(base, tmp_path / "a.safetensors"), tmp_path, 1).save_checkpoint(tmp_path / "one.ckpt")
    stage = make_stage(base, tmp_path / "a.safetensors", learning_rate=0.003)
    trainer = fit(stage, tmp_path, 2, tmp_path / "one.ckpt")
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.003


def test_images_in_place_of_seeds_come_back_with_weight_one(base: Path, tmp_path: Path):
    from PIL import Image

    for name, colour in (("one", (200, 90, 30)), ("two", (20, 90, 130))):
        Image.new("RGB", (80, 64), colour).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in ("one", "two")]
    stage = make_stage(base, tmp_path / "card.safetensors", images=images)
    stage.prepare()
    index = torch.tensor([1, 0])
    from promptnet.images.crop import square, to_pixels
    from promptnet.images.load import open_image
    from promptnet.inference.references import decode_latents, encode_pixels

    pixels = torch.stack([to_pixels(square(open_image(images[place]), 64)) for place in index])
    with torch.no_grad():
        expected = decode_latents(stage.frozen["vae"], encode_pixels(stage.frozen["vae"], pixels))
    torch.testing.assert_close(stage.originals(index), expected, rtol=0, atol=1e-3)
    fit(stage, tmp_path, 1, num_seeds=2)
    assert EditCard.load(tmp_path / "card.safetensors").weights.isfinite().all()


@pytest.fixture(scope="module")
def somebody(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A subject's file."""
    from PIL import Image

    path = tmp_path_factory.mktemp("subject") / "me.safetensors"
    pipe = PromptNetPipeline.from_pretrained(base)
    pipe.encode(Image.new("RGB", (64, 64), (200, 90, 30)), class_word="a person").save(path)
    return path


def test_a_subjects_image_in_place_of_seeds(base: Path, somebody: Path, tmp_path: Path):
    stage = make_stage(base, tmp_path / "card.safetensors", subjects=[str(somebody)])
    stage.prepare()
    with torch.no_grad():
        expected = decode_latents(stage.frozen["vae"], Subject.load(somebody).reference_latents)
    torch.testing.assert_close(stage.originals(torch.tensor([0])), expected, rtol=0, atol=1e-3)
    before = stage.weights.detach().clone()
    fit(stage, tmp_path, 1, num_seeds=1, batch_size=1)
    card = EditCard.load(tmp_path / "card.safetensors")
    assert (card.weights - before).abs().max() > 1e-3
    assert list(stage.state_dict()) == ["weights"]


def test_a_card_learned_without_a_subject_edits_that_subject(base: Path, somebody: Path, tmp_path: Path):
    fit(make_stage(base, tmp_path / "card.safetensors"), tmp_path, 1)
    card, subject = EditCard.load(tmp_path / "card.safetensors"), Subject.load(somebody)
    pipe = PromptNetPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)

    def generated(strength: float | None) -> Tensor:
        edits = [] if strength is None else [card.scaled(strength)]
        how: dict[str, Any] = {"num_inference_steps": 3, "fusion_steps": 0, "output_type": "latent"}
        generator = torch.Generator().manual_seed(0)
        return pipe("a portrait of S*", subject=subject, edits=edits, generator=generator, **how).images

    torch.testing.assert_close(generated(0), generated(None))
    assert (generated(1) - generated(0)).abs().max() > 1e-4
    back = edit_image(pipe, subject, card.scaled(0), output_type="latent")
    torch.testing.assert_close(back, subject.reference_latents, rtol=0, atol=1e-4)


def test_what_cannot_be_learned_on_is_refused(base: Path, somebody: Path, tmp_path: Path):
    out = tmp_path / "card.safetensors"
    with pytest.raises(ValueError, match="either images or subjects"):
        make_stage(base, out, subjects=[str(somebody)], images=["a.png"])
    stranger = replace(Subject.load(somebody), fingerprint={"unet": "0"})
    stranger.save(tmp_path / "stranger.safetensors")
    with pytest.raises(ValueError, match="another base model"):
        make_stage(base, out, subjects=[str(tmp_path / "stranger.safetensors")])


def test_more_seeds_than_images_are_refused(base: Path, tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (64, 64), "grey").save(tmp_path / "one.png")
    stage = make_stage(base, tmp_path / "card.safetensors", images=[str(tmp_path / "one.png")])
    with pytest.raises(ValueError, match="num_seeds=3 must be the number of images, 1"):
        fit(stage, tmp_path, 1)


def test_bad_settings_are_refused(base: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"until=1\.5"):
        make_stage(base, tmp_path / "card.safetensors", correction_end=1.5)
    with pytest.raises(ValueError, match="scheduler='HeunDiscreteScheduler' must be one of"):
        make_stage(base, tmp_path / "card.safetensors", scheduler="HeunDiscreteScheduler")
    with pytest.raises(ValueError, match="create the folder"):
        make_stage(base, tmp_path / "nowhere" / "card.safetensors")
    with pytest.raises(ValueError, match="num_seeds=0"):
        SeedDataModule(num_seeds=0)


def test_prompts_that_the_tower_cannot_tell_apart_or_read_are_refused(base: Path, tmp_path: Path):
    neutral, out = "a portrait of a person", str(tmp_path / "card.safetensors")
    with pytest.raises(ValueError, match="are the same to the text encoder"):
        EditStage(neutral, " A portrait  of a person", out, str(base))
    long = "a happy portrait " * 40
    for prompts in ((neutral, long), (long, neutral)):
        with pytest.raises(EditError, match="tokens, but the text encoder reads 48"):
            EditStage(*prompts, out, str(base))


def test_a_subjects_prompt_that_would_be_cut_off_is_refused(
    base: Path, somebody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stage = make_stage(base, tmp_path / "card.safetensors", subjects=[str(somebody)])
    stage.neutral = "a person, happy, happy"  # short, but not behind so many pseudo-words
    monkeypatch.setattr(type(stage.frozen["promptnet"]), "num_pseudo_words", lambda *_: 45)
    with pytest.raises(EditError, match=r"'S\*, happy, happy' has 51 tokens, but the text encoder reads 48"):
        stage.prepare()


def test_bases_that_edits_cannot_be_learned_in_are_refused_by_name(base: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="'runwayml/stable-diffusion' is not a folder in diffusers layout"):
        make_stage(Path("runwayml/stable-diffusion"), tmp_path / "card.safetensors")
    for change, message in (({"addition_embed_type": "text_time"}, "SDXL"), ({"in_channels": 9}, "9 channels")):
        for name in ("unet", "vae"):
            (tmp_path / name).mkdir(exist_ok=True)
            config = json.loads((base / name / "config.json").read_text())
            (tmp_path / name / "config.json").write_text(json.dumps({**config, **(change if name == "unet" else {})}))
        (tmp_path / "model_index.json").write_text("{}")
        with pytest.raises(ValueError, match=message):
            make_stage(tmp_path, tmp_path / "card.safetensors")


def test_images_are_inverted_as_many_at_once_as_a_batch_has(base: Path, tmp_path: Path, monkeypatch: Any):
    from PIL import Image

    from promptnet.training.editing import stage as disentangle

    paths = [tmp_path / f"{shade}.png" for shade in (10, 90, 170)]
    for path in paths:
        Image.new("RGB", (64, 64), (int(path.stem), 90, 30)).save(path)
    sizes, invert = [], disentangle.invert

    def noted(unet: Any, scheduler: Any, latents: Tensor, *rules: Any, **how: Any) -> Any:
        sizes.append(len(latents))
        return invert(unet, scheduler, latents, *rules, **how)

    monkeypatch.setattr(disentangle, "invert", noted)
    stage = make_stage(base, tmp_path / "card.safetensors", images=[str(path) for path in paths])
    fit(stage, tmp_path, 1, num_seeds=3, batch_size=2)
    assert sizes == [2, 1]


def test_a_numbered_gpu_is_the_one_that_learns(monkeypatch: pytest.MonkeyPatch):
    from promptnet.training.editing import learn as disentangle_learning

    noted: list[Any] = []

    class Noting:
        def __init__(self, **options: Any) -> None:
            noted.append((options["accelerator"], options["devices"]))

        def fit(self, *_: Any, **__: Any) -> None:
            pass

    monkeypatch.setattr(disentangle_learning, "Trainer", Noting)
    stage: Any = None
    for device in ("cuda:1", "cuda", "cpu", "mps:0"):
        disentangle_learning.learn_card(stage, SeedDataModule(), iterations=1, device=device)
    assert noted == [("gpu", [1]), ("gpu", 1), ("cpu", 1), ("mps", 1)]


def total_loss(stage: EditStage, index: Tensor) -> float:
    """The sum of the parts, on these seeds and with the weights as they are."""
    with torch.no_grad():
        original, image = stage.originals(index), stage.draw(index, stage.weights)
        return sum(part.weight * part(image, original).mean().item() for part in stage.parts)


@pytest.mark.parametrize(("preserve", "margin"), [(0.05, 0.005), (1.0, 0.03)])
def test_learning_lowers_the_loss(base: Path, tmp_path: Path, preserve: float, margin: float):
    """Adam's first steps move the weights whatever the gradient's sign; turned, the loss rises by over the margin."""
    parts = [VisionPerceptual(preserve), DirectionalClip()]
    stage = make_stage(base, tmp_path / "card.safetensors", parts=parts, learning_rate=0.2)
    stage.prepare()
    before = total_loss(stage, torch.tensor([0]))
    fit(stage, tmp_path, 4, num_seeds=1, batch_size=1)
    assert total_loss(stage, torch.tensor([0])) < before - margin


class Broken(LossPart):
    """A part that is not a number."""

    name = "broken"

    def __call__(self, image: Tensor, original: Tensor) -> Tensor:
        return float("nan") * image.flatten(1).mean(1)


def test_learning_ends_at_the_first_loss_that_is_no_number(base: Path, tmp_path: Path):
    stage = make_stage(base, tmp_path / "card.safetensors", parts=[Broken()])
    with pytest.raises(EditError, match="the loss is nan at iteration 1 of 50"):
        learn_card(stage, SeedDataModule(num_seeds=1, batch_size=1), iterations=50)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("iterations", [1, 2])
def test_weights_that_are_not_numbers_make_no_card(base: Path, tmp_path: Path, iterations: int):
    stage = make_stage(base, tmp_path / "card.safetensors", parts=[Broken()])
    with pytest.raises(EditError, match="not finite: learn the edit again with a lower learning rate"):
        fit(stage, tmp_path, iterations, num_seeds=1, batch_size=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheduler", SCHEDULERS[1:])
def test_every_scheduler_learns(base: Path, tmp_path: Path, scheduler: str):
    stage = make_stage(base, tmp_path / "card.safetensors", scheduler=scheduler)
    before = stage.weights.detach().clone()
    fit(stage, tmp_path, 1, num_seeds=1, batch_size=1)
    card = EditCard.load(tmp_path / "card.safetensors")
    assert card.scheduler == scheduler
    assert (card.weights - before).abs().min() > 1e-3


def test_tensorboard_shows_curves_images_and_weights(base: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = make_stage(base, tmp_path / "card.safetensors", image_every=2)
    trainer = L.Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=1,
        logger=TensorBoardLogger(tmp_path),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    trainer.fit(stage, datamodule=SeedDataModule(num_seeds=2, batch_size=2))
    shown = EventAccumulator(trainer.logger.log_dir, {"images": 0, "scalars": 0})  # pyright: ignore[reportOptionalMemberAccess]
    shown.Reload()
    assert {"train/loss", "train/perceptual", "train/direction"} <= {*shown.Tags()["scalars"]}
    for name, size in (("images", (128, 128)), ("weights", (24, 96))):  # two beside each other, edited below
        assert [image.step for image in shown.Images(name)] == [0, 2]
        assert [(image.width, image.height) for image in shown.Images(name)] == [size] * 2


# --- the parts of the loss ----------------------------------------------------------------------------------------


def test_directional_clip_is_finite_where_nothing_changed_yet(base: Path):
    part = DirectionalClip()
    part.prepare(Edit(base, "a portrait of a person", "a happy portrait of a person", torch.device("cpu")))
    original = torch.rand(2, 3, 64, 64)
    image = original.clone().requires_grad_()
    value = part(image, original)
    assert value.tolist() == pytest.approx([1, 1], abs=1e-5)
    assert torch.autograd.grad(value.sum(), image)[0].isfinite().all()
    moved = part(original + 0.3 * torch.randn_like(original), original)
    assert (moved - 1).abs().min() > 1e-4


def test_a_clip_of_its_own_folder_is_read_as_the_base_models_own(base: Path, tmp_path: Path):
    for part in ("tokenizer", "feature_extractor"):
        shutil.copytree(base / part, tmp_path, dirs_exist_ok=True)
    load_clip(base).save_pretrained(tmp_path)
    edit = Edit(base, "a portrait of a person", "a happy portrait of a person", torch.device("cpu"))
    original, image = torch.rand(2, 2, 3, 64, 64).unbind()
    for kind in (DirectionalClip, VisionPerceptual):
        own, given = kind(), kind(clip_dir=str(tmp_path))
        for part in (own, given):
            part.prepare(edit)
        torch.testing.assert_close(given(image, original), own(image, original))
    with pytest.raises(ValueError, match="which is what CLIP reads: shorten it"):
        DirectionalClip(clip_dir=str(tmp_path)).prepare(replace(edit, styled="a happy portrait" + " of a person" * 40))


def test_the_soft_cosine_is_the_cosine_away_from_zero():
    first, second = torch.randn(4, 6), torch.randn(6)
    expected = nn.functional.cosine_similarity(first, second[None])
    torch.testing.assert_close(soft_cosine(first, second, 1e-4), expected)


def test_perceptual_parts_grow_with_the_distance(base: Path, tmp_path: Path):
    from safetensors.torch import save_file
    from torchvision.models import vgg16

    with pytest.raises(ValueError, match="VisionPerceptual"):
        VGGPerceptual(str(tmp_path / "absent.safetensors"))
    network: Any = vgg16(weights=None)
    state = {f"features.{name}": value for name, value in network.features[:23].state_dict().items()}
    save_file(state, tmp_path / "vgg.safetensors")
    save_file(
        {name: value for name, value in state.items() if name != "features.21.bias"}, tmp_path / "cut.safetensors"
    )
    with pytest.raises(ValueError, match=r"cut\.safetensors' is not torchvision's VGG16: it lacks features\.21\.bias"):
        VGGPerceptual(str(tmp_path / "cut.safetensors")).prepare(Edit(base, "a", "b", torch.device("cpu")))
    vgg, vision = VGGPerceptual(str(tmp_path / "vgg.safetensors")), VisionPerceptual()
    original, change = torch.rand(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    for part in (vgg, vision):
        part.prepare(Edit(base, "a portrait", "a happy portrait", torch.device("cpu")))
        near, far = (part(original + size * change, original).item() for size in (0.01, 0.3))
        assert part(original, original).item() == 0
        assert 0 < near < far
    assert [list(one.shape[1:]) for one in vgg.features(original)] == [
        [64, 64, 64],
        [128, 32, 32],
        [256, 16, 16],
        [512, 8, 8],
    ]


def test_as_published_vgg_is_the_sum_over_depths_at_224_px(base: Path, tmp_path: Path):
    """Against the published code's arithmetic, written out."""
    from safetensors.torch import save_file
    from torchvision.models import vgg16

    network: Any = vgg16(weights=None).eval()
    save_file({f"features.{name}": value for name, value in network.features.state_dict().items()}, tmp_path / "vgg")
    part = VGGPerceptual(str(tmp_path / "vgg"), as_published=True)
    part.prepare(Edit(base, "", "", torch.device("cpu")))
    original, image = 2.4 * torch.rand(2, 1, 3, 64, 64) - 1.2
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, y = (((one + 1) / 2).clamp(0, 1).sub(mean).div(std) for one in (image, original))
    x, y = (nn.functional.interpolate(one, size=(224, 224), mode="bilinear") for one in (x, y))
    expected = 0.0
    with torch.no_grad():
        for first, last in ((0, 4), (4, 9), (9, 16), (16, 23)):
            x, y = (network.features[first:last](one) for one in (x, y))
            expected += nn.functional.l1_loss(x, y).item()
        assert part(image, original).item() == pytest.approx(expected, rel=1e-4)


def test_as_published_clip_compares_features_as_they_are(base: Path):
    part = DirectionalClip(as_published=True)
    part.prepare(Edit(base, "a portrait of a person", "a happy portrait of a person", torch.device("cpu")))
    original, image = 2.4 * torch.rand(2, 2, 3, 64, 64) - 1.2
    features = [
        part.reader.clip.get_image_features(((one + 1) / 2).clamp(0, 1)).pooler_output for one in (original, image)
    ]
    texts = part.reader.text_features(["a portrait of a person", "a happy portrait of a person"])
    expected = 1 - nn.functional.cosine_similarity(features[0] - features[1], (texts[0] - texts[1])[None])
    torch.testing.assert_close(part(image, original), expected, rtol=0, atol=1e-4)
    ours = DirectionalClip()
    ours.prepare(Edit(base, "a portrait of a person", "a happy portrait of a person", torch.device("cpu")))
    assert (ours(image, original) - expected).abs().max() > 1e-3


def test_as_published_pixels_are_repeated_and_pooled():
    pixels = torch.rand(1, 3, 512, 512)
    upsampled = nn.Upsample(scale_factor=7)(pixels)
    torch.testing.assert_close(repeated_and_pooled(pixels, 224), nn.AvgPool2d(16)(upsampled))


def test_feature_distance_and_normalisation():
    ones, zeros = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    assert feature_distance([ones, 3 * ones], [zeros, zeros]).tolist() == [2, 2]
    found = normalised(torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1), (0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    assert found.flatten().tolist() == [-1, 0, 1]


def test_the_judge_part_reads_the_fields_that_may_not_change(tmp_path: Path):
    from promptnet.models.judge import AvatarJudge

    torch.manual_seed(0)
    AvatarJudge({"hair": ["a", "b"], "mood": ["c", "d"]}, width=8).save_pretrained(str(tmp_path / "judge"))
    edit = Edit(tmp_path, "", "", torch.device("cpu"))
    part = JudgePreservation(["mood"], str(tmp_path / "judge"))
    part.prepare(edit)
    original, image = torch.rand(2, 2, 3, 64, 64)
    read, was = (part.judge(pixels)["hair"].log_softmax(1) for pixels in (image, original))
    expected = (was.exp() * (was - read)).sum(1)
    torch.testing.assert_close(part(image, original), expected)
    with pytest.raises(ValueError, match=r"changed=\['nose'\]"):
        JudgePreservation(["nose"], str(tmp_path / "judge")).prepare(edit)


def test_the_judge_says_whether_what_is_asked_appears(tmp_path: Path):
    from promptnet.models.judge import AvatarJudge

    torch.manual_seed(0)
    folder = str(tmp_path / "judge")
    AvatarJudge({"hair": ["a", "b"], "mood": ["c", "d", "e"]}, width=8).save_pretrained(folder)
    edit = Edit(tmp_path, "", "", torch.device("cpu"))
    part = JudgeEditSuccess({"mood": "d", "hair": "b"}, folder, temperature=2.0)
    part.prepare(edit)
    original, image = torch.rand(2, 2, 3, 64, 64)
    image.requires_grad_()
    read = part.judge(image)
    expected = -((read["mood"] / 2).log_softmax(1)[:, 1] + (read["hair"] / 2).log_softmax(1)[:, 1]) / 2
    found = part(image, original)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), image)
    assert part(image - 0.1 * gradient, original).sum() < found.sum()
    for asked, message in (
        ({"nose": "long"}, r"asked=\['nose'\] are not fields that the judge reads: hair, mood"),
        ({"mood": "f"}, "mood='f' is nothing that the judge reads: c, d, e"),
    ):
        with pytest.raises(ValueError, match=message):
            JudgeEditSuccess(asked, folder).prepare(edit)
    with pytest.raises(ValueError, match="names nothing to show"):
        JudgeEditSuccess({}, folder)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        JudgeEditSuccess({"mood": "d"}, folder, temperature=0)


def test_the_test_judge_may_not_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from promptnet.models.judge import AvatarJudge

    base, tests = tmp_path / "base", tmp_path / "judges" / "test"
    for folder in (base, tests, tmp_path / "judges" / "other"):
        folder.mkdir(parents=True)
        AvatarJudge({"hair": ["a", "b"]}, width=8).save_pretrained(str(folder))
    (tmp_path / "link").symlink_to(tests, target_is_directory=True)
    monkeypatch.chdir(tests)
    edit = Edit(base, "", "", torch.device("cpu"))
    for spelling in (tests, tests / "..", tmp_path / "link", tmp_path / "judges" / "other" / ".." / "test", Path()):
        folder = str(spelling / "test" if spelling.name == ".." else spelling)
        with pytest.raises(ValueError, match="is the test judge, which measures what was learned"):
            JudgePreservation([], folder).prepare(edit)
        with pytest.raises(ValueError, match="is the test judge, which measures what was learned"):
            JudgeEditSuccess({"hair": "a"}, folder).prepare(edit)
    JudgePreservation([], str(tmp_path / "judges" / "other")).prepare(edit)


def test_the_curve_shows_the_weights():
    found = weights_image(torch.tensor([1.5, 0.5, -0.5]), height_px=40, column_px=2)
    assert found.shape == (1, 40, 6)
    assert (found == 1).float().mean(dim=(0, 1)).tolist() == pytest.approx([0, 0, 0.5, 0.5, 1, 1], abs=0.12)
