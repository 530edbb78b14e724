"""Stock pipelines draw what ours draws with plain guidance and edits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from promptnet import PromptNetPipeline, Subject
from promptnet.export import ExportError, in_stock_pipeline
from promptnet.inference.editing.card import EditCard, edit_fingerprint
from promptnet.inference.editing.schedule_settings import schedule_settings
from tests.export.conftest import FAMILIES

ROOT = Path(__file__).parents[2]
PLAIN: dict[str, Any] = {"class_scale": 0.0, "fusion_steps": 0, "output_type": "latent", "resolution": "off"}
PROMPT = "S* hat"


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def both(
    pipe: Any, stock: Any, subject: Any, prompt: str = PROMPT, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of ours and of the stock pipeline."""
    config = {"num_inference_steps": 4, "subject_scale": 3.0, **options}
    count = config.pop("num_images", 1)
    ours = pipe(prompt, subject=subject, generator=seeded(), num_images_per_prompt=count, **config, **PLAIN).images
    given = {**config, "num_images": count, "generator": seeded(), "promptnet": pipe.promptnet}
    with in_stock_pipeline(stock, subject, prompt, **given) as arguments:
        theirs = stock(**arguments, output_type="latent").images
    return ours, theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuned", [False, True])
def test_the_stock_pipeline_draws_what_ours_draws(
    pipes: dict[str, Any], stock_of: Callable[[str], Any], make_subject: Any, family: str, tuned: bool
) -> None:
    subject = make_subject(pipes[family], tuned=tuned)
    ours, theirs = both(pipes[family], stock_of(family), subject)
    assert distance(theirs, ours) < 1e-5
    elsewhere, _ = both(pipes[family], stock_of(family), make_subject(pipes[family], seed=1))
    assert distance(elsewhere, ours) > 1e-3  # a subject changes the image by more than that


@pytest.mark.parametrize(
    "options",
    [
        {"num_images": 2},
        {"subject_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"eta": 0.5},
        {"negative_prompt": "dog"},
        {"negative_prompt": ""},
        {"word_positions": "published"},
        {"height": 64, "width": 48},
        {"height": 64, "width": 64, "encoder_input": "reference"},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_what_a_call_may_set(
    pipes: dict[str, Any], stock_of: Any, make_subject: Any, family: str, options: dict[str, Any]
) -> None:
    ours, theirs = both(pipes[family], stock_of(family), make_subject(pipes[family]), **options)
    assert distance(theirs, ours) < 1e-5


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"]
)
def test_other_schedulers(pipes: dict[str, Any], stock_of: Any, make_subject: Any, name: str) -> None:
    pipe, stock = PromptNetPipeline(**pipes["sd"].components), stock_of("sd")
    pipe.set_progress_bar_config(disable=True)
    for each in (pipe, stock):
        each.scheduler = getattr(diffusers, name).from_config(stock.scheduler.config, skip_prk_steps=True)
    ours, theirs = both(pipe, stock, make_subject(pipe))
    assert distance(theirs, ours) < 1e-5


def test_two_people_in_one_image(pipes: dict[str, Any], stock_of: Any, make_subject: Any) -> None:
    pair = [make_subject(pipes["sd"], seed=seed) for seed in (0, 1)]
    ours, theirs = both(pipes["sd"], stock_of("sd"), pair, "S1* S2*")
    assert distance(theirs, ours) < 1e-5


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_edits_act_as_in_ours(pipes: dict[str, Any], stock_of: Any, make_subject: Any, family: str) -> None:
    pipe, subject = pipes[family], make_subject(pipes[family])
    card = EditCard(
        torch.tensor([1.0, 0.2, 0.0]),
        "dog",
        "hat",
        "DDIMScheduler",
        3.0,
        edit_fingerprint(pipe),
        schedule=schedule_settings(pipe.scheduler),
    )
    ours, theirs = both(pipe, stock_of(family), subject, edits=card, num_inference_steps=3)
    assert distance(theirs, ours) < 1e-5
    plain, _ = both(pipe, stock_of(family), subject, num_inference_steps=3)
    assert distance(plain, ours) > 1e-4


def test_the_embedded_model() -> None:
    base = ROOT / "checkpoints" / "tiny"
    ours: Any = PromptNetPipeline.from_pretrained(base)
    stock: Any = diffusers.StableDiffusionPipeline.from_pretrained(
        base, safety_checker=None, feature_extractor=None, requires_safety_checker=False, torch_dtype=torch.float32
    )
    for pipe in (ours, stock):
        pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    subject = ours.customize(
        _noise_image(), allow_foreign=True, registration="never", steps=2, generator=generator, progress_bar=False
    )
    latents = both(ours, stock, subject, "a portrait of S* wearing glasses", num_inference_steps=5)
    assert distance(*latents) < 1e-5


def _noise_image() -> Any:
    from PIL import Image

    pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_nothing_is_left_behind(pipes: dict[str, Any], stock_of: Any, make_subject: Any) -> None:
    stock = stock_of("sd")
    call: dict[str, Any] = {"prompt": "hat", "num_inference_steps": 2, "output_type": "latent"}
    before = stock(**call, generator=seeded()).images
    both(pipes["sd"], stock, make_subject(pipes["sd"]))
    assert torch.equal(stock(**call, generator=seeded()).images, before)


def test_the_arguments_serve_again(pipes: dict[str, Any], stock_of: Any, make_subject: Any) -> None:
    stock = stock_of("sd")
    options: dict[str, Any] = {"promptnet": pipes["sd"].promptnet, "num_inference_steps": 3, "subject_scale": 1.0}
    with in_stock_pipeline(stock, make_subject(pipes["sd"]), PROMPT, **options, generator=seeded()) as arguments:
        first, second = (stock(**arguments, output_type="latent").images for _ in range(2))
    assert torch.equal(first, second)


def test_the_encoder_may_be_a_folder(
    pipes: dict[str, Any], stock_of: Any, make_subject: Callable[..., Subject], tmp_path: Path
) -> None:
    pipes["sd"].promptnet.save_pretrained(tmp_path)
    stock, subject = stock_of("sd"), make_subject(pipes["sd"])
    with in_stock_pipeline(stock, subject, PROMPT, promptnet=tmp_path, num_inference_steps=2) as arguments:
        assert stock(**arguments, output_type="latent").images.isfinite().all()


def refused(stock: Any, subject: Any, pipe: Any, **options: Any) -> None:
    with in_stock_pipeline(stock, subject, PROMPT, promptnet=pipe.promptnet, **options) as arguments:
        stock(**arguments, output_type="latent")


def test_what_is_not_exact_is_refused(pipes: dict[str, Any], stock_of: Any, make_subject: Any) -> None:
    pipe, stock = pipes["sd"], stock_of("sd")
    with pytest.raises(ExportError, match="has 2 reference images"):
        refused(stock, make_subject(pipe, num_references=2), pipe)
    with pytest.raises(ExportError, match=r"subject_scale=0\.5 is below 1"):
        refused(stock, make_subject(pipe), pipe, subject_scale=0.5)
    with pytest.raises(ExportError, match="draws subjects itself"):
        refused(pipe, make_subject(pipe), pipe)
    image_to_image = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(stock)
    with pytest.raises(ExportError, match="not exact in StableDiffusionImg2ImgPipeline"):
        refused(image_to_image, make_subject(pipe), pipe)
    with pytest.raises(ValueError, match="another base model"):
        refused(stock_of("sd"), make_subject(pipes["sdxl"], tuned=False), pipe)


def test_another_number_of_steps_than_said_is_refused(pipes: dict[str, Any], stock_of: Any, make_subject: Any) -> None:
    stock = stock_of("sd")
    with (
        pytest.raises(ExportError, match="draws in 3 steps"),
        in_stock_pipeline(
            stock, make_subject(pipes["sd"]), PROMPT, promptnet=pipes["sd"].promptnet, num_inference_steps=2
        ) as arguments,
    ):
        stock(**{**arguments, "num_inference_steps": 3})
