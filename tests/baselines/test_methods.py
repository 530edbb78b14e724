"""Each baseline against its paper's formula, and what comes out of it in use."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from promptnet import PromptNetPipeline, Subject
from promptnet.baselines.config import DreamBoothConfig, DreamBoothLoRAConfig, TextualInversionConfig, load_config
from promptnet.baselines.dreambooth import DreamBooth, dreambooth_folder
from promptnet.baselines.dreambooth_lora import DreamBoothLoRA, dreambooth_lora_subject
from promptnet.baselines.learner import Run, lora_targets
from promptnet.baselines.prior import Prior, prior_images
from promptnet.baselines.textual_inversion import TextualInversion, initial_words, textual_inversion_subject
from promptnet.baselines.words import repeated, word_embeddings
from promptnet.inference.subject.lora import initial_loras
from promptnet.inference.tuning.customize import Steps
from promptnet.inference.tuning.views import Batch
from promptnet.models.text_encoders import text_encoders_of
from tests.baselines.conftest import picture, seeded
from tests.baselines.formulas import squared_error, text_inputs

ROOT = Path(__file__).parents[2]
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 2, "num_views": 2, "prompts": "a S*", "validate_every": 1}
PRIOR: dict[str, Any] = {"prior_prompt": "a", "num_prior_images": 2, "prior_steps": 1, "identifier": "s"}


def batch_of(timesteps: list[int]) -> Batch:
    shape = (len(timesteps), 4, 16, 16)
    draws = seeded(3)
    latents, noise = (torch.randn(shape, generator=draws) for _ in range(2))
    images = torch.zeros(len(timesteps), dtype=torch.long)
    masks, prompts = torch.ones_like(latents[:, :1]), ["a S*"] * len(timesteps)
    return Batch(latents, masks, noise, torch.tensor(timesteps), images, prompts)


def run_of(pipe: Any, config: Any) -> Any:
    return Run(pipe, picture(), "a", config, seeded())


def one_step(run: Run, learner: Any, batch: Batch) -> float:
    """The loss of a real step of the loop; gradients are kept for the test."""
    steps = Steps(run.own, learner, run.config)
    steps.optimizer.zero_grad = lambda *_: None  # type: ignore[method-assign]
    return steps.take(run.views.references, batch)


def test_textual_inversions_loss_and_gradient_are_the_papers(pipe):
    run = run_of(pipe, TextualInversionConfig(**SHORT))
    start = initial_words(pipe, run.config, "a")
    learner = TextualInversion(start)
    batch = batch_of([100, 700])
    loss = one_step(run, learner, batch)
    words = start.clone().requires_grad_()
    inputs = text_inputs(pipe, words)
    errors = [
        squared_error(pipe, batch.latents[i : i + 1], batch.noise[i : i + 1], int(t), inputs)
        for i, t in enumerate(batch.timesteps)
    ]
    expected = torch.stack(errors).mean()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(learner.words.grad, words.grad, rtol=2e-3, atol=1e-6)
    # AdamW's first step moves every value by its rate against the gradient's sign, behind the weight decay.
    rate, decay = run.config.learning_rate, run.config.weight_decay
    assert words.grad is not None
    moved = start * (1 - rate * decay) - rate * words.grad / (words.grad.abs() + 1e-8)
    torch.testing.assert_close(learner.words.detach(), moved, rtol=1e-3, atol=2e-4)


def prior_of(pipe: Any, run: Run) -> Prior:
    latents = torch.randn(1, 4, 16, 16, generator=seeded(8))
    return Prior(latents, "a", 0.5, 1, len(pipe.scheduler.alphas_cumprod), run.draws)


def expected_prior_loss(pipe: Any, batch: Batch, both: Batch, words: torch.Tensor) -> torch.Tensor:
    """Equation 2: the person's mean error, plus lambda times that of the class."""
    person = text_inputs(pipe, words)
    own = torch.stack(
        [
            squared_error(pipe, batch.latents[i : i + 1], batch.noise[i : i + 1], int(t), person)
            for i, t in enumerate(batch.timesteps)
        ]
    ).mean()
    nobody = text_inputs(pipe, words[:0])
    last = slice(len(both.latents) - 1, None)
    return own + 0.5 * squared_error(pipe, both.latents[last], both.noise[last], int(both.timesteps[-1]), nobody)


def test_dreambooths_loss_and_gradient_are_the_papers_with_its_prior(pipe):
    run = run_of(pipe, DreamBoothConfig(**SHORT, **PRIOR))
    words = word_embeddings(pipe, "s a")
    prior, batch = prior_of(pipe, run), batch_of([100, 700])
    both = prior.extended(batch)
    prior.extended = lambda _: both  # type: ignore[method-assign]
    learner = DreamBooth(copy.deepcopy(pipe.unet), words, prior)
    loss = one_step(run, learner, batch)
    reference = copy.copy(pipe)
    vars(reference)["unet"] = copy.deepcopy(pipe.unet).requires_grad_()
    expected = expected_prior_loss(reference, batch, both, words)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    for one, other in zip(learner.unet.parameters(), reference.unet.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=2e-3, atol=1e-6)
    assert all(p.grad is None for p in pipe.unet.parameters())


def test_the_loras_gradient_is_that_of_the_weight_it_is_added_to(pipe):
    run = run_of(pipe, DreamBoothLoRAConfig(**SHORT, **PRIOR))
    words, prior, batch = word_embeddings(pipe, "s a"), prior_of(pipe, run), batch_of([100, 700])
    both = prior.extended(batch)
    prior.extended = lambda _: both  # type: ignore[method-assign]
    targets = lora_targets(pipe.unet, "attention")
    learner = DreamBoothLoRA(words, initial_loras(targets, 2, seeded(1)), prior)
    A = {name: lora.A.detach().clone() for name, lora in learner.loras.items()}
    loss = one_step(run, learner, batch)
    reference = copy.copy(pipe)
    vars(reference)["unet"] = copy.deepcopy(pipe.unet).requires_grad_()
    expected = expected_prior_loss(reference, batch, both, words)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    for name, lora in learner.loras.items():  # W + B A with B = 0: dL/dB = dL/dW A^T, and dL/dA = 0
        weight = reference.unet.get_submodule(name).weight
        torch.testing.assert_close(lora.B.grad, weight.grad @ A[name].mT, rtol=5e-3, atol=1e-6)
        assert lora.A.grad is not None
        assert not lora.A.grad.any()


def test_a_prior_weight_of_nothing_draws_no_images(pipe, tmp_path):
    config = DreamBoothLoRAConfig(**SHORT, **PRIOR, prior_weight=0)
    dreambooth_lora_subject(pipe, picture(), "a", config, cache=tmp_path, progress_bar=False, generator=seeded())
    assert not list(tmp_path.rglob("*.png"))


def test_prior_images_are_drawn_once_and_added_to(pipes, tmp_path):
    pipe, config = pipes["sd"], DreamBoothLoRAConfig(**PRIOR)
    first = prior_images(pipe, config, "a", tmp_path)
    (folder,) = tmp_path.iterdir()
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    more = prior_images(pipe, config.replaced({"num_prior_images": 3}), "a", tmp_path)
    assert [image.tobytes() for image in more[:2]] == [image.tobytes() for image in first]
    assert len(list(folder.iterdir())) == 3
    assert all((folder / name).stat().st_mtime_ns == time for name, time in times.items())
    prior_images(pipe, config.replaced({"prior_guidance": 2.0}), "a", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def drawn(pipe: Any, prompt: str, subject: Any = None) -> torch.Tensor:
    options = {"num_inference_steps": 2, "output_type": "latent", "fusion_steps": 0, "class_scale": 0.0}
    return pipe(prompt, subject=subject, generator=seeded(), subject_scale=3.0, guidance_scale=3.0, **options).images


def test_textual_inversion_gives_a_subject_that_draws_saves_and_repeats(pipe, tmp_path):
    config = TextualInversionConfig(**SHORT, num_words=2, keep="last", initial_word="a")
    subjects = [
        textual_inversion_subject(pipe, picture(), "a", config, generator=seeded(), progress_bar=False)
        for _ in range(2)
    ]
    assert subjects[0].content_hash == subjects[1].content_hash
    assert subjects[0].words is not None
    assert subjects[0].words.shape == (2, text_encoders_of(pipe).width)
    assert not subjects[0].loras
    subjects[0].save(tmp_path / "a.safetensors")
    found = Subject.load(tmp_path / "a.safetensors")
    assert torch.equal(drawn(pipe, "a S*", found), drawn(pipe, "a S*", subjects[0]))
    assert not torch.equal(drawn(pipe, "a S*", found), drawn(pipe, "a a"))


@pytest.mark.parametrize("layers", ["kv", "attention"])
def test_dreambooth_lora_gives_a_subject_whose_layers_act_where_it_stands(pipes, tmp_path, layers):
    pipe = pipes["sd"]
    config = DreamBoothLoRAConfig(**SHORT, **PRIOR, keep="last", layers=layers)
    subject = dreambooth_lora_subject(
        pipe, picture(), "a", config, cache=tmp_path, generator=seeded(), progress_bar=False
    )
    assert set(subject.unet_loras) == set(lora_targets(pipe.unet, layers))
    assert not torch.equal(drawn(pipe, "a S*", subject), drawn(pipe, "a s a"))
    torch.testing.assert_close(drawn(pipe, "a S*", subject.scaled(0)), drawn(pipe, "a s a"))


def test_dreambooth_writes_a_base_model_and_leaves_its_own_alone(pipe, tmp_path):
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    config = DreamBoothConfig(**{**SHORT, **PRIOR, "learning_rate": 1e-3})
    out = dreambooth_folder(
        pipe, picture(), tmp_path / "me", "a", config, cache=tmp_path / "prior", generator=seeded(), progress_bar=False
    )
    assert all(torch.equal(before[name], weight) for name, weight in pipe.unet.state_dict().items())
    loaded = PromptNetPipeline.from_pretrained(out)
    loaded.set_progress_bar_config(disable=True)
    assert json.loads((out / "dreambooth.json").read_text())["prompt"] == "a photo of s a"
    assert not torch.equal(drawn(loaded, "a s a"), drawn(pipe, "a s a"))
    assert torch.equal(loaded.vae.decoder.conv_in.weight, pipe.vae.decoder.conv_in.weight)
    with pytest.raises(ValueError, match="exists already"):
        dreambooth_folder(pipe, picture(), out, "a", config)


def test_half_precision_is_refused_for_the_whole_unet(pipes, tmp_path):
    pipe = copy.copy(pipes["sd"])
    vars(pipe)["unet"] = copy.deepcopy(pipe.unet).half()
    with pytest.raises(ValueError, match="load the base model as float32"):
        dreambooth_folder(pipe, picture(), tmp_path / "me", "a")
    assert not list(tmp_path.iterdir())


def test_the_last_step_is_kept_though_it_is_no_better_and_no_patience_ends_it(pipes):
    pipe = pipes["sd"]
    config = TextualInversionConfig(**{**SHORT, "learning_rate": 3.0, "patience": 1, "steps": 5}, keep="last")
    seen: list[Any] = []
    run = run_of(pipe, config)
    found = run.tune(lambda: TextualInversion(initial_words(pipe, config, "a")), False, seen.append)
    assert len(seen) == 5
    assert not torch.equal(found[0], initial_words(pipe, config, "a"))


@pytest.mark.parametrize("decay", [True, False])
def test_the_learning_rate_falls_or_stays(pipes, decay):
    pipe = pipes["sd"]
    run = run_of(pipe, TextualInversionConfig(**SHORT, decay=decay))
    steps = Steps(run.own, TextualInversion(initial_words(pipe, run.config, "a")), run.config)
    rates = []
    for _ in range(3):
        steps.take(run.views.references, batch_of([5, 50]))
        rates.append(steps.optimizer.param_groups[0]["lr"] / run.config.learning_rate)
    assert rates == pytest.approx([1, 2 / 3, 1 / 3] if decay else [1, 1, 1])


def test_words_of_two_encoders_stand_side_by_side(pipes):
    pipe = pipes["sdxl"]
    ids = pipe.tokenizer("a", add_special_tokens=False).input_ids
    words = word_embeddings(pipe, "a")
    assert torch.equal(words[:, :24], pipe.text_encoder.get_input_embeddings().weight[ids])
    assert torch.equal(words[:, 24:], pipe.text_encoder_2.get_input_embeddings().weight[ids])
    with pytest.raises(ValueError, match="has \\[0\\] tokens"):
        word_embeddings(pipe, "")


def test_words_are_repeated_or_cut():
    words = torch.arange(6.0).view(3, 2)
    assert torch.equal(repeated(words, 1), words[2:])
    assert torch.equal(repeated(words, 4), torch.cat([words, words[:1]]))


@pytest.mark.parametrize(
    ("method", "name", "expected"),
    [
        ("textual-inversion", "learning_rate", 0.04),
        ("textual-inversion", "steps", 5000),
        ("textual-inversion", "batch_size", 8),
        ("dreambooth", "learning_rate", 5e-6),
        ("dreambooth", "prior_weight", 1.0),
        ("dreambooth", "num_prior_images", 1000),
        ("dreambooth-lora", "rank", 4),
        ("e4t", "steps", 15),
        ("e4t", "batch_size", 16),
    ],
)
def test_the_published_values_are_in_the_configs(method, name, expected):
    config = load_config(method, ROOT / "configs" / "baselines" / f"{method}.yaml")
    assert getattr(config, name) == expected
    assert config.keep == "last"
    assert not config.decay


def test_configs_are_refused_by_name(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("stepz: 3")
    with pytest.raises(ValueError, match="Unknown tuning parameter stepz"):
        load_config("e4t", path)
    path.write_text("- 3")
    with pytest.raises(ValueError, match="names and values"):
        load_config("e4t", path)
    with pytest.raises(ValueError, match="method='lora' must be one of"):
        load_config("lora")
    with pytest.raises(ValueError, match="keep='all'"):
        load_config("e4t", keep="all")
    with pytest.raises(ValueError, match="layers='all'"):
        load_config("dreambooth-lora", layers="all")
    with pytest.raises(ValueError, match="must not hold"):
        load_config("dreambooth", prior_prompt="S*")
