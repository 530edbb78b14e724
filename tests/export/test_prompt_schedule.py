"""Edit cards as text: where the prompt switches, and what that loses."""

import pytest
import torch

from promptnet.export.prompt_schedules import prompt_schedule
from promptnet.inference.editing.card import EditCard


def card(weights: list[float], neutral: str = "a person", styled: str = "a happy person") -> EditCard:
    return EditCard(torch.tensor(weights), neutral, styled, "DDIMScheduler", 3.0, {"unet": "abc"})


def test_a_card_that_switches_once_loses_nothing() -> None:
    found = prompt_schedule(card([1.0, 1.0, 0.0, 0.0, 0.0]))
    assert found.text == "[a person:a happy person:0.4]"
    assert found.loss == 0
    assert "0.0 to 0.400" in found.page()
    assert "close to the card" in found.page()


@pytest.mark.parametrize(("weight", "text"), [(1.0, "a person"), (0.0, "a happy person")])
def test_a_card_that_never_switches_is_one_prompt(weight: float, text: str) -> None:
    assert prompt_schedule(card([weight] * 3)).text == text


def test_what_a_switch_loses_is_said() -> None:
    found = prompt_schedule(card([0.5, 0.5, 0.5, 0.5]))
    assert found.loss == pytest.approx(0.5)
    assert "far from the card" in found.page()


def test_the_hosts_own_signs_are_escaped() -> None:
    found = prompt_schedule(card([1.0, 0.0], "a [person]", "a person: happy"))
    assert found.text == r"[a \[person\]:a person\: happy:0.5]"
