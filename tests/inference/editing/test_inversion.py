"""Inversion gives the image back: exactly with all corrections, and not as the published replay reads them."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from promptnet.inference.editing.card import EditCard, edit_fingerprint
from promptnet.inference.editing.inversion import (
    PUBLISHED_END,
    Corrections,
    Inversion,
    KeptOutside,
    check_invertible,
    ddim_invert,
    invert,
    joined,
    make_scheduler,
)
from promptnet.inference.editing.rule import mixing_rule
from promptnet.inference.sampling.conditions import PlainPrompts, networks_of
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance
from promptnet.inference.sampling.loop import Rule, predict_output, sample
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
    card = EditCard(weights, *prompts, type(pipe.scheduler).__name__, 3.0, edit_fingerprint(pipe))
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


@torch.no_grad()
def encoded_by_hand(pipe: Any, latents: Tensor, noise: Tensor, rule: Rule) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Start, corrections and levels of the published code, written down from its description (methods.md 2)."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(NUM_STEPS)
    levels = list(dict.fromkeys(scheduler.timesteps.tolist()))  # T_49 to T_0
    alphas = [float(scheduler.alphas_cumprod[t]) for t in levels]
    calls = plan(scheduler)

    def epsilon(x: Tensor, timestep: int) -> Tensor:
        return predict_output(pipe.unet, x, next(c for c in calls if c.timestep == timestep), [rule])

    x = latents
    for k in range(len(levels) - 1, 0, -1):  # 49 updates from T_0 on, each at the level that it leaves
        e, a, up = epsilon(x, levels[k]), alphas[k], alphas[k - 1]
        x = (up / a) ** 0.5 * (x - (1 - a) ** 0.5 * e) + (1 - up) ** 0.5 * e
    images = [a**0.5 * latents + (1 - a) ** 0.5 * n for a, n in zip(alphas, noise, strict=True)]
    start, corrections, now = x, [], x
    scheduler.set_timesteps(NUM_STEPS)
    targets = images[:1] + images if len(calls) > NUM_STEPS else images
    for call, target in zip(calls, targets, strict=True):
        stepped = scheduler.step(epsilon(now, int(call.timestep)), call.timestep, now).prev_sample
        corrections.append(target - stepped)
        now = target
    if len(calls) > NUM_STEPS:
        corrections[0] = corrections[1]
    after = [*images[1:], latents]
    return start, corrections, after[:1] + after if len(calls) > NUM_STEPS else after


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_as_published_start_and_corrections_are_the_published_ones(pipe: Any, name: str):
    """Row 8 of the faults: ours began at alphabar 1, unguided, and corrected towards its own way up."""
    use_scheduler(pipe, name)
    latents, rules = torch.randn(2, 4, 8, 8), [guidance(pipe, 2, 7.5)]
    noise = torch.randn(NUM_STEPS, *latents.shape)
    found = invert(pipe.unet, pipe.scheduler, latents, rules, num_steps=NUM_STEPS, as_published=True, noise=noise)
    start, corrections, levels = encoded_by_hand(pipe, latents, noise, rules[0])
    torch.testing.assert_close(found.start, start, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.corrections, torch.stack(corrections), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.levels, torch.stack(levels), rtol=0, atol=1e-5)
    for until in (1.0, PUBLISHED_END):
        assert (replayed(pipe, found, [*rules, found.rule(until=until)]) - latents).abs().max() > 1e-2


def test_the_noise_of_published_corrections_is_given_or_drawn(pipe: Any):
    use_scheduler(pipe, "DDIMScheduler")
    latents, rules = torch.randn(1, 4, 8, 8), [guidance(pipe, 1, 3.0)]

    def corrections(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        how: dict[str, Any] = {"num_steps": NUM_STEPS, "as_published": True, "generator": generator}
        return invert(pipe.unet, pipe.scheduler, latents, rules, **how).corrections

    assert torch.equal(corrections(0), corrections(0))
    assert not torch.equal(corrections(0), corrections(1))
    with pytest.raises(ValueError, match=r"noise has shape \(3, 1, 4, 8, 8\), but must be \(20, 1, 4, 8, 8\)"):
        inverted(pipe, latents, as_published=True, noise=torch.randn(3, 1, 4, 8, 8))
    with pytest.raises(ValueError, match="noise is for as_published=True"):
        inverted(pipe, latents, noise=torch.randn(NUM_STEPS, 1, 4, 8, 8))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_as_published_from_pure_noise_everything_is_finite(pipe: Any, name: str):
    pipe.scheduler = make_scheduler(name, pipe.scheduler.config)  # the fixture's starts at a = 0
    found = inverted(pipe, torch.randn(1, 4, 8, 8), as_published=True)
    assert all(value.isfinite().all() for value in vars(found).values())


@pytest.mark.parametrize(("name", "corrected"), [("DDIMScheduler", 33), ("PNDMScheduler", 34)])
def test_as_published_the_steps_above_16_of_50_are_corrected(pipe: Any, name: str, corrected: int):
    use_scheduler(pipe, name)
    pipe.scheduler.set_timesteps(50)
    steps, x = plan(pipe.scheduler), torch.zeros(1)
    rule = Corrections(torch.ones(len(steps), 1), PUBLISHED_END)
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
        start = ddim_invert(pipe.unet, pipe.scheduler, latents, plan(pipe.scheduler), rules, num_iterations)[0]
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
