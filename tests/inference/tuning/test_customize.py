"""Per-user tuning: it learns the image, keeps the best, repeats, and leaves the networks as they were."""

import copy
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet import PromptNetPipeline, Subject
from promptnet.inference.references import open_references
from promptnet.inference.subject.lora import apply_loras
from promptnet.inference.tuning import customize
from promptnet.inference.tuning.config import TuningConfig, TuningError, TuningProgress
from promptnet.inference.tuning.customize import customize_subject
from promptnet.inference.tuning.loss import held_out_timesteps
from promptnet.inference.tuning.views import held_out_batches, prepare_views

NETWORKS = ("vae", "text_encoder", "unet", "promptnet", "image_encoder")


def image(seed: int = 0, side_px: int = 40) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((side_px, side_px))


def run(pipe: Any, images: Any = None, *, seed: int = 0, **options: Any) -> Subject:
    settings = {"steps": 3, "num_views": 3, "batch_size": 2, "progress_bar": False, **options}
    generator = torch.Generator().manual_seed(seed)
    return customize_subject(pipe, image() if images is None else images, **{"generator": generator, **settings})


def history(pipe: Any, **options: Any) -> tuple[Subject, list[TuningProgress]]:
    seen: list[TuningProgress] = []
    return run(pipe, callback=seen.append, **options), seen


def weights_of(pipe: Any) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": t.clone() for n in NETWORKS for k, t in getattr(pipe, n).state_dict().items()}


def flags_of(pipe: Any) -> list[bool]:
    networks = [getattr(pipe, name) for name in NETWORKS]
    return [m.training for n in networks for m in n.modules()] + [
        p.requires_grad for n in networks for p in n.parameters()
    ]


# -- what it learns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [("words", "kv"), ("words",), ("kv",)])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_the_held_out_loss_falls_whatever_trains(pipe, train, prediction):
    pipe.scheduler.register_to_config(prediction_type=prediction)
    options = {"steps": 12, "validate_every": 4, "learning_rate": 3e-2, "train": train, "batch_size": 4}
    subject, seen = history(pipe, **options)
    assert seen[-1].best_validation_loss < seen[0].validation_loss
    components = {name.partition(".")[0] for name in subject.loras}
    assert components == {{"words": "promptnet", "kv": "unet"}[part] for part in train}
    assert all(lora.B.abs().max() > 0 for lora in subject.loras.values())


def test_the_deltas_that_are_kept_have_the_loss_that_was_reported(pipe):
    config = TuningConfig(num_views=3)
    subject, seen = history(pipe, steps=8, validate_every=2, learning_rate=3e-2, train=("words", "kv"))
    draws = customize.own_generator(torch.Generator().manual_seed(0))
    tuning_views = prepare_views(pipe, open_references(image()), config, draws)
    batches = held_out_batches(tuning_views, config, held_out_timesteps(1000), draws)

    def loss(unet_loras: Any, promptnet_loras: Any) -> float:
        with (
            torch.no_grad(),
            apply_loras(pipe.unet, [unet_loras] * 4),
            apply_loras(pipe.promptnet, [promptnet_loras] * 4),
        ):
            return float(customize.denoising_loss(pipe, tuning_views.references, batches[0]).mean())

    assert loss(subject.unet_loras, subject.promptnet_loras) == pytest.approx(seen[-1].best_validation_loss, rel=1e-5)
    assert loss({}, {}) > seen[-1].best_validation_loss
    assert loss({}, subject.promptnet_loras) != pytest.approx(seen[-1].best_validation_loss, rel=1e-5)
    assert loss(subject.unet_loras, {}) != pytest.approx(seen[-1].best_validation_loss, rel=1e-5)


def test_a_tuned_subject_draws_saves_and_loads(pipe, tmp_path):
    subject = run(pipe, steps=6, learning_rate=3e-2)
    path = tmp_path / "me.safetensors"
    subject.save(path)
    assert path.stat().st_size < 2**20
    loaded = Subject.load(path)
    loaded.check(pipe)

    def draw(who: Subject) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        options = {"num_inference_steps": 2, "output_type": "latent", "generator": generator}
        return pipe("a photo of S*", subject=who, **options).images

    assert torch.equal(draw(loaded), draw(subject))
    assert not torch.allclose(draw(loaded), draw(pipe.encode(image())), atol=1e-3)


def test_several_images_of_one_person(pipe):
    seen: set[int] = set()

    def noting(*args: Any) -> Any:
        batch = training_batch(*args)
        seen.update(batch.images.tolist())
        return batch

    training_batch = customize.training_batch
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(customize, "training_batch", noting)
        subject = run(pipe, [image(0), image(1, 64), image(2)], steps=8, class_word="woman")
    assert subject.num_references == 3
    assert subject.class_word == "woman"
    assert seen == {0, 1, 2}
    torch.testing.assert_close(subject.weights, torch.full((3,), 1 / 3))


def test_no_steps_is_encoding(pipe):
    assert run(pipe, steps=0, class_word="boy").content_hash == pipe.encode(image(), class_word="boy").content_hash


def test_no_step_trains_on_a_held_out_level(pipe, monkeypatch):
    trained, validated = [], []
    loss = customize.denoising_loss

    def noting(pipe: Any, references: Any, batch: Any) -> torch.Tensor:
        (trained if torch.is_grad_enabled() else validated).append(batch)
        return loss(pipe, references, batch)

    monkeypatch.setattr(customize, "denoising_loss", noting)
    run(pipe, steps=6, batch_size=4, validate_every=3)
    levels = {int(t) for batch in validated for t in batch.timesteps}
    assert levels == {125, 375, 625, 875}
    assert len({int(t) for batch in trained for t in batch.timesteps}) > 12
    assert not levels & {int(t) for batch in trained for t in batch.timesteps}
    assert all(torch.equal(batch.noise, validated[0].noise) for batch in validated)
    assert len(validated) == 3  # before, in the middle, at the end
    assert not any(torch.equal(n, v) for batch in trained for n in batch.noise for v in validated[0].noise)


# -- when it stops ----------------------------------------------------------------------------------------------------


def scripted_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[dict[str, torch.Tensor]]:
    """Make the looks say these losses; returns what the LoRA layers were at each look."""
    looks: list[dict[str, torch.Tensor]] = []

    def look(pipe: Any, references: Any, batches: Any, trainable: Any) -> float:
        looks.append({name: lora.B.clone() for name, lora in trainable.snapshot().items()})
        return losses[len(looks) - 1]

    monkeypatch.setattr(customize, "validation_loss", look)
    return looks


def test_it_stops_when_patience_ends_and_keeps_the_best(pipe, monkeypatch):
    looks = scripted_losses(monkeypatch, [1.0, 0.9, 0.8, 0.85, 0.81, 0.1])
    subject, seen = history(pipe, steps=40, validate_every=2, patience=2)
    assert [progress.step for progress in seen] == list(range(1, 9))  # looks at 2, 4 (best), 6, 8
    assert seen[-1].best_validation_loss == 0.8
    for name, lora in subject.loras.items():
        assert torch.equal(lora.B, looks[2][name])
        assert not torch.equal(lora.B, looks[4][name])


def test_tuning_that_never_helped_leaves_no_deltas(pipe, monkeypatch):
    scripted_losses(monkeypatch, [1.0, 1.1, 1.0, 1.2])
    subject = run(pipe, steps=3, validate_every=1, patience=3)
    assert subject.loras == {}
    assert subject.content_hash == pipe.encode(image()).content_hash


def test_the_last_step_is_looked_at(pipe, monkeypatch):
    looks = scripted_losses(monkeypatch, [1.0, 0.9, 0.8])
    run(pipe, steps=5, validate_every=3)
    assert len(looks) == 3


@pytest.mark.parametrize("losses", [[float("nan")], [1.0, float("inf")]])
def test_a_loss_that_is_no_number_is_an_error(pipe, monkeypatch, losses):
    scripted_losses(monkeypatch, losses)
    message = "check its weights" if len(losses) == 1 else r"the loss is inf at step 1 of 3\. Lower learning_rate=0.007"
    with pytest.raises(TuningError, match=message):
        run(pipe, learning_rate=0.007, validate_every=1)


def test_a_learning_rate_that_explodes_is_an_error(pipe):
    with pytest.raises(TuningError, match="Lower learning_rate=1e"):
        run(pipe, steps=5, learning_rate=1e30)


# -- what it leaves alone ---------------------------------------------------------------------------------------------


@pytest.fixture
def trainable_pipe(pipe):
    """Networks in a state of their own: partly in training mode, partly wanting gradients."""
    pipe.unet.train()
    pipe.unet.mid_block.eval()
    pipe.text_encoder.requires_grad_(True)
    yield pipe
    pipe.unet.eval()
    pipe.text_encoder.requires_grad_(False)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_networks_are_bit_identical_afterwards(trainable_pipe, error):
    pipe = trainable_pipe
    weights, flags = weights_of(pipe), flags_of(pipe)

    def stop(progress: TuningProgress) -> None:
        if error and progress.step == 2:
            raise error

    if error:
        with pytest.raises(error):
            run(pipe, learning_rate=3e-2, callback=stop)
    else:
        run(pipe, learning_rate=3e-2, callback=stop)
    assert flags_of(pipe) == flags
    after = weights_of(pipe)
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    networks = [getattr(pipe, name) for name in NETWORKS]
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())
    latents, timestep, states = torch.randn(1, 4, 8, 8), torch.tensor(5), torch.randn(1, 3, 32)
    fresh = type(pipe.unet).from_config(pipe.unet.config)
    fresh.load_state_dict(pipe.unet.state_dict())
    assert torch.equal(*(unet.eval()(latents, timestep, states).sample for unet in (pipe.unet, fresh)))


def test_everything_comes_from_the_generator_and_takes_one_number(pipe):
    state = torch.random.get_rng_state()
    one, again, other = run(pipe, seed=3), run(pipe, seed=3), run(pipe, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.content_hash == again.content_hash
    assert one.content_hash != other.content_hash
    short, long = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    run(pipe, generator=short, steps=1)
    run(pipe, generator=long, steps=4)
    assert torch.equal(short.get_state(), long.get_state())


def test_without_a_generator_torchs_own_decides(pipe):
    hashes = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        hashes.append(run(pipe, generator=None).content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients_get_the_same(pipe, context):
    expected = run(pipe)
    with context():
        found = run(pipe)
    assert found.content_hash == expected.content_hash
    assert not found.reference_latents.is_inference()


def test_gradient_checkpointing_inside_the_unet_gives_the_same(pipe):
    expected = run(pipe)
    pipe.unet.enable_gradient_checkpointing()
    try:
        found = run(pipe)
    finally:
        pipe.unet.disable_gradient_checkpointing()
    for name, lora in expected.loras.items():
        torch.testing.assert_close(found.loras[name].B, lora.B)


def test_mixed_precision_learns_the_same(pipe, monkeypatch):
    options = {"steps": 6, "validate_every": 6, "learning_rate": 3e-2}
    expected, seen = history(pipe, **options)
    monkeypatch.setattr(customize, "autocast", lambda pipe: torch.autocast("cpu", torch.bfloat16))  # as on a GPU
    found, seen_mixed = history(pipe, **options)
    assert seen_mixed[-1].loss == pytest.approx(seen[-1].loss, rel=0.05)
    assert seen_mixed[-1].loss != seen[-1].loss
    for name, lora in expected.loras.items():
        assert found.loras[name].B.dtype == torch.float32
        cosine = torch.cosine_similarity(found.loras[name].B.flatten(), lora.B.flatten(), dim=0)
        assert cosine > 0.7


def test_half_precision_networks_give_a_half_precision_subject(networks):
    half: dict[str, Any] = {
        n: copy.deepcopy(c).bfloat16() if isinstance(c, torch.nn.Module) else c for n, c in networks.items()
    }
    pipe = PromptNetPipeline(**half)
    subject = run(pipe, steps=6, validate_every=2, learning_rate=3e-2)
    assert subject.loras
    assert {tensor.dtype for name, tensor in subject.tensors().items() if name != "weights"} == {torch.bfloat16}
    subject.check(pipe)


# -- how it is asked --------------------------------------------------------------------------------------------------


def test_the_pipelines_own_knobs_are_the_defaults(pipe):
    pipe.register_to_config(tuning={"steps": 2, "train": ["kv"], "rank": 1})
    seen: list[TuningProgress] = []
    subject = customize_subject(pipe, image(), callback=seen.append, progress_bar=False, num_views=2, batch_size=2)
    assert [progress.num_steps for progress in seen] == [2, 2]
    assert {lora.rank for lora in subject.loras.values()} <= {1}
    assert not subject.promptnet_loras


def test_the_pipelines_method_is_this(pipe):
    options = {"steps": 2, "num_views": 2, "batch_size": 2, "progress_bar": False}
    one = pipe.customize(image(), class_word="man", generator=torch.Generator().manual_seed(0), **options)
    other = run(pipe, class_word="man", **options)
    assert one.content_hash == other.content_hash


def test_it_shows_progress(pipe, capfd):
    pipe.set_progress_bar_config(disable=False)
    run(pipe, progress_bar=True)
    assert "3/3" in capfd.readouterr().err
    run(pipe, progress_bar=False)
    assert capfd.readouterr().err == ""


def test_bad_images_and_knobs_are_refused_before_any_work(pipe, monkeypatch):
    def work(*_args: Any) -> None:
        raise AssertionError("began to encode")

    monkeypatch.setattr(customize, "prepare_views", work)
    with pytest.raises(ValueError, match="too small, 20x20"):
        run(pipe, image(side_px=20))
    with pytest.raises(ValueError, match="not an image"):
        run(pipe, BytesIO(b"<html>"))
    with pytest.raises(ValueError, match="no reference image"):
        run(pipe, [])
    with pytest.raises(ValueError, match="steps=-3"):
        run(pipe, steps=-3)


def test_a_rank_that_a_layer_cannot_have_is_refused(pipe):
    with pytest.raises(ValueError, match="rank=17 must be between 1 and 16"):
        run(pipe, rank=17)


def test_what_gradients_cannot_run_through_is_refused(pipe):
    pipe.unet._hf_hook = object()  # what accelerate leaves on offloaded networks
    try:
        with pytest.raises(ValueError, match=r"remove_all_hooks\(\)"):
            run(pipe)
    finally:
        del pipe.unet._hf_hook


def test_schedulers_of_another_prediction_are_refused(pipe):
    pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        run(pipe)
