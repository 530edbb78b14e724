"""The evaluation's commands take the arguments of its functions, with the same defaults."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptnet.commands import _loading
from promptnet.commands import evaluate as commands
from promptnet.evaluation.resolution.compare import evaluate_resolution
from promptnet.evaluation.subjects.base_model import evaluate_base
from promptnet.evaluation.subjects.compare import evaluate_avatars
from promptnet.evaluation.subjects.tune import tune_settings

PAIRS = [
    (commands.avatars, evaluate_avatars),
    (commands.base_model, evaluate_base),
    (commands.resolution, evaluate_resolution),
    (commands.tune, tune_settings),
]
# The command line names these differently.
OTHERWISE = {"base", "device", "customize", "keep_customize"}


@pytest.mark.parametrize(("command", "function"), PAIRS, ids=lambda each: each.__name__)
def test_commands_and_functions_agree(command: Callable[..., Any], function: Callable[..., Any]) -> None:
    said, taken = (inspect.signature(each).parameters for each in (command, function))
    untold = {"judge"} - set(said)  # of most commands the base model decides it
    assert set(said) - OTHERWISE == set(taken) - OTHERWISE - untold
    for name in set(said) - OTHERWISE:
        assert said[name].default == taken[name].default, name


@pytest.mark.parametrize(("command", "function"), PAIRS, ids=lambda each: each.__name__)
def test_all_options_arrive(
    command: Callable[..., Any], function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[str, Any] = {}
    monkeypatch.setattr(
        f"{function.__module__}.{function.__name__}", lambda base, **rest: heard.update(rest, base=base)
    )
    monkeypatch.setattr(_loading, "find_base", lambda base: base)
    names = [name for name in inspect.signature(command).parameters if name not in OTHERWISE | {"out"}]
    values: dict[str, Any] = {"methods": ["best"], "sizes": ["96x64:2"], "settings": Path(__file__), "split": "test"}
    values["frame"] = "shift"
    if command is commands.resolution:
        values["methods"] = ["direct"]
    given = {name: values.get(name, 11 + place) for place, name in enumerate(names)}
    command(**given, base="a base", device="cpu")
    assert {name: heard[name] for name in names} == given
    assert (heard["base"], heard["device"], heard["out"]) == ("a base", "cpu", None)
