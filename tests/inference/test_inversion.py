"""Inversion gives the picture back: exactly with all corrections, and not as the published replay reads them."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from promptnet.inference.conditions import Networks, PlainPrompts
from promptnet.inference.guidance import ClassifierFreeGuidance
from promptnet.inference.inversion import (
    Inversion,
    KeptOutside,
    check_invertible,
    climb,
    invert,
    make_scheduler,
)
from promptnet.inference.mixing import MixingWeights, edit_fingerprint, mixing_rule
from promptnet.inference.sampling import Rule, sample
from promptnet.inference.schedule import plan

SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
NUM_STEPS = 20


def use_scheduler(pipe: Any, name: str, **options: Any) -> None:
    settings = {"skip_prk_steps": True, "rescale_betas_zero_snr": False, "prediction_type": "epsilon", **options}
    pipe.scheduler = getattr(diffusers, name).from_config({**pipe.scheduler.config, **settings})


def guidance(pipe: Any, num_rows: int, scale: float) -> Rule:
    networks = Networks(pipe.tokenizer, pipe.text_encoder, None, torch.device("cpu"), torch.float32)
    texts, rows = ("", "a photo of a person"), torch.arange(num_rows)
    prompts = PlainPrompts(networks, texts)
    uncond, prompt = (prompts.condition([text] * num_rows, rows) for text in texts)
    return ClassifierFreeGuidance(uncond, prompt, scale)


def edit(pipe: Any, weights: Tensor) -> Rule:
    networks = Networks(pipe.tokenizer, pipe.text_encoder, None, torch.device("cpu"), torch.float32)
    prompts = ("a photo of a person", "a dog on a red chair")
    card = MixingWeights(weights, *prompts, type(pipe.scheduler).__name__, 3.0, edit_fingerprint(pipe))
    return mixing_rule([card], networks)


@torch.no_grad()
def replayed(pipe: Any, inversion: Inversion, rules: list[Rule]) -> Tensor:
    pipe.scheduler.set_timesteps(NUM_STEPS)
    return sample(pipe.unet, pipe.scheduler, inversion.start, rules)


def inverted(pipe: Any, latents: Tensor, **options: Any) -> Inversion:
    rules = [guidance(pipe, len(latents), 3.0)]
    plain = [guidance(pipe, len(latents), 1.0)]
    return invert(pipe.unet, pipe.scheduler, latents, rules, num_steps=NUM_STEPS, inversion_rules=plain, **options)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_weight_one_gives_the_latents_back(pipe: Any, name: str):
    use_scheduler(pipe, name)
    latents = torch.randn(2, 4, 8, 8)
    inversion = inverted(pipe, latents)
    assert len(inversion.corrections) == NUM_STEPS + (name == "PNDMScheduler")
    mixing = edit(pipe, torch.ones(NUM_STEPS))
    again = replayed(pipe, inversion, [guidance(pipe, 2, 3.0), mixing, inversion.rule()])
    torch.testing.assert_close(again, latents, rtol=0, atol=1e-4)

    without = replayed(pipe, inversion, [guidance(pipe, 2, 3.0)])
    assert (without - latents).abs().max() > 1e-2, "the corrections have nothing to do"
    weights = torch.linspace(1, 0, NUM_STEPS)
    edited = replayed(pipe, inversion, [guidance(pipe, 2, 3.0), edit(pipe, weights), inversion.rule()])
    assert (edited - latents).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_the_published_replay_is_off_by_one_and_does_not(pipe: Any, name: str):
    use_scheduler(pipe, name)
    latents = torch.randn(1, 4, 8, 8)
    inversion = inverted(pipe, latents)
    rule = inversion.rule(as_published=True)
    again = replayed(pipe, inversion, [guidance(pipe, 1, 3.0), rule])
    assert (again - latents).abs().max() > 1e-2
    step = plan(pipe.scheduler)[3]
    moved = rule.after(torch.zeros(1, 4, 8, 8), step)
    assert torch.equal(moved, inversion.corrections[2])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_from_pure_noise_with_v_prediction(pipe: Any, name: str):
    trained = pipe.scheduler.alphas_cumprod
    pipe.scheduler = make_scheduler(name, pipe.scheduler.config)  # the fixture's starts at a = 0
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod[:-1], trained[:-1], rtol=1e-4, atol=1e-7)
    latents = torch.randn(1, 4, 8, 8)
    inversion = inverted(pipe, latents)
    assert inversion.start.isfinite().all()
    again = replayed(pipe, inversion, [guidance(pipe, 1, 3.0), inversion.rule()])
    torch.testing.assert_close(again, latents, rtol=0, atol=1e-4)


def test_zero_terminal_signal_is_not_lost_on_the_way_to_pndm(pipe: Any):
    ignoring = diffusers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    with pytest.raises(ValueError, match="PNDMScheduler ignores rescale_betas_zero_snr"):
        check_invertible(ignoring)
    scheduler = make_scheduler("PNDMScheduler", pipe.scheduler.config)
    check_invertible(scheduler)
    scheduler.set_timesteps(NUM_STEPS)
    assert min(step.alpha for step in plan(scheduler)) > 0


def test_only_the_noisier_steps_may_be_corrected(pipe: Any):
    use_scheduler(pipe, "DDIMScheduler")
    inversion = inverted(pipe, torch.randn(1, 4, 8, 8))
    pipe.scheduler.set_timesteps(NUM_STEPS)
    rule, steps, x = inversion.rule(until=0.68), plan(pipe.scheduler), torch.zeros(1, 4, 8, 8)
    corrected = [not torch.equal(rule.after(x, step), x) for step in steps]
    assert corrected == [True] * 14 + [False] * 6
    with pytest.raises(ValueError, match=r"until=1\.5"):
        inversion.rule(until=1.5)
    with pytest.raises(ValueError, match="inverted in 20 scheduler calls, but the drawing has 30"):
        rule.after(x, replace(steps[0], num_steps=30))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_a_solved_fixed_point_is_the_exact_inverse_of_ddim(pipe: Any, kind: str):
    use_scheduler(pipe, "DDIMScheduler", prediction_type=kind)
    latents, rules = torch.randn(1, 4, 8, 8), [guidance(pipe, 1, 1.0)]
    pipe.scheduler.set_timesteps(NUM_STEPS)
    errors = []
    for num_iterations in (1, 20):
        start = climb(pipe.unet, pipe.scheduler, latents, plan(pipe.scheduler), rules, num_iterations)[0]
        errors.append((sample(pipe.unet, pipe.scheduler, start, rules) - latents).abs().max().item())
    assert errors[1] < 1e-3, errors
    assert errors[0] > 3 * errors[1]


def test_schedulers_that_cannot_replay_are_refused(pipe: Any):
    use_scheduler(pipe, "EulerAncestralDiscreteScheduler")
    with pytest.raises(ValueError, match="EulerAncestralDiscreteScheduler cannot replay"):
        check_invertible(pipe.scheduler)
    use_scheduler(pipe, "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++")
    with pytest.raises(ValueError, match="'sde-dpmsolver\\+\\+' cannot replay"):
        check_invertible(pipe.scheduler)


def test_outside_a_mask_the_picture_stays(pipe: Any):
    latents = torch.randn(1, 4, 8, 8)
    inversion = inverted(pipe, latents)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    rules = [guidance(pipe, 1, 3.0), edit(pipe, torch.zeros(NUM_STEPS)), inversion.rule()]
    edited = replayed(pipe, inversion, [*rules, KeptOutside(inversion.levels, mask)])
    assert torch.equal(edited[..., :4], latents[..., :4])
    assert (edited - latents)[..., 4:].abs().max() > 1e-2
