"""Inversion gives the image back: exactly with all corrections, and not as the published replay reads them."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from promptnet.inference.editing.card import MixingWeights, edit_fingerprint
from promptnet.inference.editing.inversion import (
    PUBLISHED_UNTIL,
    Corrections,
    Inversion,
    KeptOutside,
    check_invertible,
    climb,
    invert,
    joined,
    make_scheduler,
)
from promptnet.inference.editing.rule import mixing_rule
from promptnet.inference.sampling.conditions import PlainPrompts, networks_of
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance
from promptnet.inference.sampling.loop import Rule, sample
from promptnet.inference.sampling.schedule import plan

SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
NUM_STEPS = 20


def use_scheduler(pipe: Any, name: str, **options: Any) -> None:
    settings = {"skip_prk_steps": True, "rescale_betas_zero_snr": False, "prediction_type": "epsilon", **options}
    pipe.scheduler = getattr(diffusers, name).from_config({**pipe.scheduler.config, **settings})


def guidance(pipe: Any, num_rows: int, scale: float) -> Rule:
    networks = networks_of(pipe)
    texts, rows = ("", "a photo of a person"), torch.arange(num_rows)
    prompts = PlainPrompts(networks, texts)
    uncond, prompt = (prompts.condition([text] * num_rows, rows) for text in texts)
    return ClassifierFreeGuidance(uncond, prompt, scale)


def edit(pipe: Any, weights: Tensor) -> Rule:
    networks = networks_of(pipe)
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
def test_the_published_replay_lags_one_level_and_does_not(pipe: Any, name: str):
    """Recorded by hand, call by call: ours leads from call k to level k + 1, theirs back to the level it came from."""
    use_scheduler(pipe, name)
    latents, rules = torch.randn(1, 4, 8, 8), [guidance(pipe, 1, 3.0)]
    ours, theirs = inverted(pipe, latents), inverted(pipe, latents, as_published=True)
    assert torch.equal(ours.start, theirs.start)
    assert torch.equal(ours.levels, theirs.levels)
    plms, num_calls = name == "PNDMScheduler", len(ours.levels)
    before = [ours.start, *ours.levels[:-1]]  # each call
    if plms:  # its second call does the first step again
        before[1] = ours.start
    wanted = {True: before, False: list(ours.levels)}
    for published, inversion in ((False, ours), (True, theirs)):
        noted, x = [], inversion.start
        pipe.scheduler.set_timesteps(NUM_STEPS)
        for step in plan(pipe.scheduler):
            with torch.no_grad():
                stepped = sample(pipe.unet, pipe.scheduler, x, rules, steps=[step])
            x = wanted[published][step.index]
            noted.append(x - stepped)
        stored = [noted[1], *noted[1:]] if published and plms else noted  # one is stored twice, the second time stays
        applied = [inversion.rule().after(torch.zeros_like(x), step) for step in plan(pipe.scheduler)]
        assert len(applied) == num_calls
        torch.testing.assert_close(torch.stack(applied), torch.stack(stored), rtol=0, atol=1e-5)
    assert torch.equal(theirs.corrections[0], theirs.corrections[1]) == plms

    torch.testing.assert_close(replayed(pipe, ours, [*rules, ours.rule()]), latents, rtol=0, atol=1e-4)
    for until in (1.0, PUBLISHED_UNTIL):
        assert (replayed(pipe, theirs, [*rules, theirs.rule(until=until)]) - latents).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "corrected"), [("DDIMScheduler", 33), ("PNDMScheduler", 34)])
def test_as_published_the_steps_above_16_of_50_are_corrected(pipe: Any, name: str, corrected: int):
    use_scheduler(pipe, name)
    pipe.scheduler.set_timesteps(50)
    steps, x = plan(pipe.scheduler), torch.zeros(1)
    rule = Corrections(torch.ones(len(steps), 1), PUBLISHED_UNTIL)
    assert [bool(rule.after(x, step)) for step in steps] == [True] * corrected + [False] * 17


def test_images_inverted_one_after_the_other_are_a_batch(pipe: Any):
    use_scheduler(pipe, "DDIMScheduler")
    latents = torch.randn(3, 4, 8, 8)
    parts = joined([inverted(pipe, part) for part in latents.split(2)])
    whole = inverted(pipe, latents).of_rows(torch.tensor([2, 0]))
    for one, other in zip(vars(parts.of_rows(torch.tensor([2, 0]))).values(), vars(whole).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


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


def test_outside_a_mask_the_image_stays(pipe: Any):
    latents = torch.randn(1, 4, 8, 8)
    inversion = inverted(pipe, latents)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    rules = [guidance(pipe, 1, 3.0), edit(pipe, torch.zeros(NUM_STEPS)), inversion.rule()]
    edited = replayed(pipe, inversion, [*rules, KeptOutside(inversion.levels, mask)])
    assert torch.equal(edited[..., :4], latents[..., :4])
    assert (edited - latents)[..., 4:].abs().max() > 1e-2
