"""Calls in threads, over pipelines that share their networks: each is bit for bit what it is alone."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from promptnet import PromptNetPipeline
from promptnet.inference.editing.card import EditCard, edit_fingerprint
from promptnet.inference.editing.edit_image import edit_image
from promptnet.inference.references import decode_latents, encode_pixels

THREADS = 4
LATENT: Any = {"output_type": "latent", "num_inference_steps": 2}
TEXTS = ("a photo of a person", "a photo of a person wearing a hat")
Call = Callable[[], Tensor]


@pytest.fixture(autouse=True)
def one_thread_inside() -> Any:
    """Sums in several threads of torch's own may be rounded in several ways."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pipes(new_pipe: Any) -> list[Any]:
    """Two pipelines, of networks that nobody has called yet; the second with a scheduler of its own."""
    first = new_pipe
    parts = dict(first.components)
    parts["scheduler"] = DDIMScheduler.from_config(first.scheduler.config)
    second = PromptNetPipeline(**parts)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.requires_grad_(True)  # as `from_pretrained` leaves it
    return [first, second]


def photo(seed: int, side: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def card_of(pipe: Any) -> EditCard:
    weights = torch.tensor([0.2, 0.8])
    return EditCard(weights, *TEXTS, "DDIMScheduler", 3.0, edit_fingerprint(pipe), "tiny")


def kinds(pipe: Any, make_subject: Any) -> dict[str, Call]:
    """Every kind of call that a pipeline knows."""
    one, two = make_subject(pipe, 1, tuned=True), make_subject(pipe, 2, tuned=True, num_references=2)
    card = card_of(pipe)
    latents = torch.randn(1, 4, 8, 8, generator=seeded(9))
    dispersed: Any = {"factors": {"mid_block": 1.5, "up_blocks": 2}, "dispersed": ["up_blocks"]}

    def generated(prompt: Any, seed: int, **options: Any) -> Call:
        return lambda: pipe(prompt, generator=seeded(seed), **{**LATENT, **options}).images

    def customized() -> Tensor:
        options: Any = {"steps": 2, "batch_size": 2, "num_views": 2, "learning_rate": 3e-2, "validate_every": 1}
        subject = pipe.customize(photo(3), generator=seeded(5), progress_bar=False, **options)
        assert subject.loras
        return torch.cat([part.flatten() for part in subject.tensors().values()])

    return {
        "plain": generated("a dog", 0),
        "several steps": generated("a hat", 1, num_inference_steps=4),
        "one subject": generated("S* on a chair", 2, subject=one),
        "another": generated("S* on a chair", 3, subject=two),
        "both and none": generated(["S*", "a dog", "S* and a dog"], 4, subject=[two, None, one]),
        "wide": generated("a dog", 5, height=16, width=32),
        "a wide subject": generated("S* on a chair", 6, subject=one, height=16, width=24),
        "large": generated("a dog", 7, height=32, width=32, resolution=dispersed),
        "edited": generated(TEXTS[0], 8, edits=card),
        "an edited photo": lambda: edit_image(pipe, photo(4), card, crop=True, output_type="latent"),
        "customized": customized,
        "encoded": lambda: pipe.encode(photo(6)).reference_latents,
        "decoded": lambda: decode_latents(pipe.vae, latents),
    }


def together(calls: list[Call]) -> list[Tensor]:
    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@pytest.mark.parametrize("seed", [0, 1])
def test_any_mixture_of_calls_is_what_each_is_alone(seed: int, pipes: list[Any], make_subject: Any) -> None:
    """Slots are installed while others call: the mixture comes first, what it should have been afterwards."""
    of_pipes = [kinds(pipe, make_subject) for pipe in pipes]
    chosen = [(name, which) for name in of_pipes[0] for which in (0, 1)]
    random.Random(seed).shuffle(chosen)
    flags = [weight.requires_grad for weight in pipes[0].unet.parameters()]
    found = together([of_pipes[which][name] for name, which in chosen])
    alone = {name: call() for name, call in of_pipes[0].items()}
    differing = {name for (name, _), each in zip(chosen, found, strict=True) if not torch.equal(each, alone[name])}
    assert differing == set()
    assert [weight.requires_grad for weight in pipes[0].unet.parameters()] == flags


def test_one_pipeline_serves_many_threads(pipes: list[Any], make_subject: Any) -> None:
    """The scheduler is the call's own, too."""
    pipe = pipes[0]
    calls = [kinds(pipe, make_subject)[name] for name in ("plain", "several steps", "one subject", "wide")]
    alone = [call() for call in calls]
    found = together(calls * 3)
    assert all(torch.equal(each, alone[place % len(calls)]) for place, each in enumerate(found))


def test_a_stop_stops_the_call_whose_callback_asks_for_it(pipes: list[Any]) -> None:
    pipe = pipes[0]

    def generated(stops: bool) -> int:
        steps: list[int] = []

        def note(running: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            assert running.num_timesteps == 6
            steps.append(index)
            running._interrupt = stops and index == 1
            return values

        pipe("a dog", generator=seeded(0), num_inference_steps=6, output_type="latent", callback_on_step_end=note)
        return len(steps)

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(generated, [True, False] * 4)) == [2, 6] * 4


def test_a_stop_from_outside_stops_all(pipes: list[Any]) -> None:
    pipe, steps = pipes[0], []

    def note(running: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(index)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(setattr, pipe, "_interrupt", True).result()
        return values

    pipe("a dog", generator=seeded(0), num_inference_steps=6, output_type="latent", callback_on_step_end=note)
    assert steps == [0]


def test_stock_pipelines_beside_subjects_and_other_sizes(pipes: list[Any], make_subject: Any) -> None:
    """diffusers' own pipeline, of the same networks, adapts nothing and has nobody's loras."""
    pipe, calls = pipes[0], kinds(pipes[0], make_subject)
    parts = {name: pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet")}
    stock: Any = StableDiffusionPipeline(
        **parts,
        scheduler=DDIMScheduler.from_config(pipe.scheduler.config),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)

    def generated() -> Tensor:
        """One after the other: diffusers' pipelines serve one thread."""
        return torch.cat([stock("a dog", generator=seeded(i), height=16, width=16, **LATENT).images for i in range(8)])

    expected = generated()
    others = [calls[name] for name in ("wide", "one subject", "a wide subject", "another")]
    assert torch.equal(together([generated, *others * 2])[0], expected)


def test_vaes_in_half_precision_and_tiles_are_shared(pipes: list[Any]) -> None:
    """Decoded and encoded in float32, and in tiles with statistics of each image's own."""
    vae = pipes[0].vae.half().requires_grad_(True)
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 16
    vae.enable_tiling()
    sizes = [(8, 8), (16, 16), (12, 24), (8, 24)]
    latents = [torch.randn(1, 4, *size, generator=seeded(i)).half() for i, size in enumerate(sizes)]
    pixels = torch.rand(1, 3, 16, 16, generator=seeded(7)) * 2 - 1

    @torch.no_grad()
    def decoded(place: int) -> Tensor:
        assert vae.dtype == torch.float16
        return decode_latents(vae, latents[place])

    @torch.no_grad()
    def encoded() -> Tensor:
        return encode_pixels(vae, pixels.half())

    alone = [*map(decoded, range(len(sizes))), encoded()]
    calls: list[Call] = [*(lambda place=place: decoded(place) for place in range(len(sizes))), encoded]
    found = together(calls * 3)
    assert all(torch.equal(each, alone[place % len(alone)]) for place, each in enumerate(found))
