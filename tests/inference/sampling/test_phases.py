"""Roles and phases: all that rules know of each other."""

import itertools
from typing import Any

import pytest
import torch

import promptnet.inference.editing.inversion as inversion
from promptnet.inference.editing.rule import Directions, Mixing
from promptnet.inference.resolution import ResolutionSettings, resolution_rules
from promptnet.inference.sampling.conditions import networks_of
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.loop import Rule, sample
from promptnet.inference.sampling.phases import Phase, Role, in_phases
from promptnet.inference.sampling.requests import make_requests
from promptnet.inference.sampling.rules import build_rules


def test_roles_are_their_texts() -> None:
    assert [Role.UNCOND, Role.PROMPT, Role.CLASS, Role.DAMPED] == ["uncond", "prompt", "class", "uncond.damped"]
    assert Role.subject(2) == "subject.2"
    assert {Role.subject(0): 1}[Role("subject.0")] == 1


def test_rules_of_one_phase_keep_their_order() -> None:
    class Early(Rule):
        phase = Phase.GUIDANCE

    first, second, early = Rule(), Rule(), Early()
    assert in_phases([first, second, early]) == [early, first, second]
    assert in_phases([second, early, first]) == [early, second, first]


def all_rules(pipe: Any, subject: Any, steps: int) -> list[Rule]:
    """One rule of each phase, for one row with a subject at an adapted size."""
    config = SamplingConfig(fusion_steps=1, guidance_rescale=0.5, class_scale=0.5)
    generator = torch.Generator().manual_seed(1)
    rules = build_rules(
        make_requests("S* by the sea", subject), config, networks_of(pipe), prediction="epsilon", generator=generator
    )
    states = pipe.text_encoder(torch.zeros(1, pipe.tokenizer.model_max_length, dtype=torch.long))[0]
    rules.append(Mixing(torch.linspace(1, 0, steps)[None], Directions(0.1 * torch.randn_like(states))))
    latents = torch.randn(steps, 1, pipe.unet.config.in_channels, 16, 16, generator=generator)
    rules += [inversion.Corrections(0.1 * latents), inversion.KeptOutside(latents, torch.ones(16, 16).tril())]
    settings = ResolutionSettings(
        factors={"mid_block": (2.0, 2.0)}, damped_factors={"mid_block": (1.0, 1.0)}, num_steps=steps
    )
    return [*rules, *resolution_rules(pipe.unet, settings, trained_size_px=(16, 16), size_px=(32, 32))]


@pytest.mark.parametrize("place", range(4))
def test_the_order_in_which_rules_are_given_changes_nothing(place: int, pipe: Any, make_subject: Any) -> None:
    subject, steps = make_subject(pipe, tuned=True), 2

    def drawn(order: list[int] | None) -> torch.Tensor:
        torch.manual_seed(0)
        rules = all_rules(pipe, subject, steps)
        assert {rule.phase for rule in rules} == set(Phase)
        x = torch.randn(1, pipe.unet.config.in_channels, 16, 16)
        pipe.scheduler.set_timesteps(steps)
        return sample(pipe.unet, pipe.scheduler, x, rules if order is None else [rules[i] for i in order])

    with torch.no_grad():
        orders = list(itertools.permutations(range(8)))
        assert torch.equal(drawn(list(orders[place * 9973 + 1])), drawn(None))
