from typing import Any

import pytest
import torch

from promptnet.inference.resolution.damped_batch import damped_output, first_half
from promptnet.inference.resolution.mode import check_settings
from promptnet.inference.resolution.rules import AdaptedResolution, NoiseDampedGuidance, resolution_rules
from promptnet.inference.resolution.settings import settings_from_mapping
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, Condition, References, Refinement
from promptnet.inference.sampling.loop import Term, UNetInputs, predict_output
from promptnet.inference.sampling.phases import Role
from promptnet.inference.sampling.schedule import Step

SIZES: Any = {"trained_size_px": (128, 128), "size_px": (256, 256)}
VALUES: Any = {
    "factors": {"mid_block": 2, "down_blocks.1": 2},
    "active_steps": 40,
    "damped_factors": {"mid_block": 3},
    "damped_steps": 25,
}


def condition(seed: int) -> Condition:
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed))
    return Condition(lambda x, step: UNetInputs(states))


def at(index: int) -> Step:
    return Step(index, 50, torch.tensor(981 - 20 * index), 0.1, 0.2)


def test_three_evaluations_make_the_damped_sum(unet: Any) -> None:
    """e_u^damped + w (e_c^dil - e_u^dil), each evaluated on its own."""
    settings = settings_from_mapping(VALUES, "mine")
    adapted, damped = check_settings(unet, settings, (128, 128), (256, 256)).modes()
    x, w = torch.randn(1, 4, 32, 32), 7.5
    uncond, prompt = condition(0), condition(1)
    calls: list[int] = []
    hook = unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    rules = [ClassifierFreeGuidance(uncond, prompt, w), *resolution_rules(unet, settings, **SIZES)]
    total = predict_output(unet, x, at(0), rules)
    hook.remove()
    assert sum(calls) == 3

    def evaluated(mode: Any, condition: Condition) -> torch.Tensor:
        states = condition.inputs(x, at(0)).encoder_hidden_states
        with mode.applied(unet, at(0)):
            return unet(x, at(0).timestep, encoder_hidden_states=states).sample

    expected = evaluated(damped, uncond) + w * (evaluated(adapted, prompt) - evaluated(adapted, uncond))
    torch.testing.assert_close(total, expected, rtol=0, atol=2e-5)


def test_four_terms_inside_refinement() -> None:
    refinement = Refinement(
        condition(0), References(torch.tensor([0]), [condition(1)], torch.ones(1, 1)), condition(2), 5, 3
    )
    settings = settings_from_mapping(VALUES, "mine")
    modes = object(), object()
    adaptation: Any = type("A", (), {"is_damped": lambda self, share: share < settings.damped_steps / 50})()
    terms: list[Term] = []
    for rule in (refinement, AdaptedResolution(modes[0]), NoiseDampedGuidance(modes[1], adaptation)):  # type: ignore
        terms = rule.terms(terms, at(0))
    found = {term.role: (float(term.weight), term.mode) for term in terms}
    assert found == {
        "uncond": (-8, modes[0]),
        "uncond.damped": (1, modes[1]),
        "subject.0": (5, modes[0]),
        "class": (3, modes[0]),
    }
    assert sum(weight for weight, _ in found.values()) == 1


def test_after_its_steps_guidance_is_undamped(unet: Any) -> None:
    rules = resolution_rules(unet, settings_from_mapping(VALUES, "mine"), **SIZES)
    guidance = ClassifierFreeGuidance(condition(0), condition(1), 7.5)
    for index, count in ((0, 3), (24, 3), (25, 2), (49, 2)):
        terms: list[Term] = []
        for rule in (guidance, *rules):
            terms = rule.terms(terms, at(index))
        assert len(terms) == count


def test_without_guidance_one_evaluation_is_enough(unet: Any) -> None:
    """At guidance scale 1, e is e_c; of several rows, those that have none stay what they are alone."""
    settings = settings_from_mapping(VALUES, "mine")
    rules = resolution_rules(unet, settings, **SIZES)
    x = torch.randn(1, 4, 32, 32)
    calls: list[int] = []
    hook = unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    total = predict_output(unet, x, at(0), [ClassifierFreeGuidance(condition(0), condition(1), 1.0), *rules])
    hook.remove()
    assert sum(calls) == 1
    adapted, _ = check_settings(unet, settings, (128, 128), (256, 256)).modes()
    with adapted.applied(unet, at(0)):
        states = condition(1).inputs(x, at(0)).encoder_hidden_states
        expected = unet(x, at(0).timestep, encoder_hidden_states=states).sample
    torch.testing.assert_close(total, expected, rtol=0, atol=2e-5)
    mixed = Term(Role.UNCOND, torch.tensor([-4.0, 0.0]), condition(0).inputs)
    weights = {term.role: term.weight for term in rules[-1].terms([mixed], at(0))}
    assert {role: weight.tolist() for role, weight in weights.items() if isinstance(weight, torch.Tensor)} == {
        "uncond": [-5, 0],
        "uncond.damped": [1, 0],
    }


def test_plain_settings_need_no_rules(unet: Any) -> None:
    assert resolution_rules(unet, settings_from_mapping({"attention": False}, "mine"), **SIZES) == []


def test_a_pipelines_own_guidance_arrives_at_the_same_sum() -> None:
    uncond, prompt, damped = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
    (output,) = damped_output((torch.cat([uncond, prompt]),), (damped,))
    u, c = output.chunk(2)
    torch.testing.assert_close(u + 7.5 * (c - u), damped + 7.5 * (prompt - uncond))


def test_the_first_half_of_all_that_has_rows() -> None:
    x, frames, timestep = torch.arange(2), torch.arange(6), torch.tensor(5)
    half = first_half({"x": x, "all": (frames, [timestep, None]), "one": torch.ones(1, 3), "flag": False}, 2)
    assert torch.equal(half["x"], x[:1])
    assert torch.equal(half["all"][0], frames[:3])
    assert half["all"][1] == [timestep, None]
    assert half["one"].shape == (1, 3)
    with pytest.raises(ValueError, match="3"):
        first_half(x, 3)
