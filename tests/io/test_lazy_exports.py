"""Room fronts: every public name resolves, and importing a room loads nothing heavy."""

import importlib
import subprocess
import sys

import pytest

FRONTS = [
    "promptnet",
    "promptnet.models",
    "promptnet.inference",
    "promptnet.inference.editing",
    "promptnet.export",
    "promptnet.metrics",
    "promptnet.datasets",
    "promptnet.training",
    "promptnet.training.pretrain",
    "promptnet.evaluation",
]


@pytest.mark.parametrize("room", FRONTS)
def test_every_public_name_resolves_and_is_listed(room: str) -> None:
    module = importlib.import_module(room)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)


@pytest.mark.parametrize("room", FRONTS)
def test_an_unknown_name_is_an_attribute_error(room: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{room}' has no attribute 'Nothing'"):
        importlib.import_module(room).Nothing  # noqa: B018


def test_importing_the_rooms_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(FRONTS)}; print({{'torch', 'lightning'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_names_of_before_work_and_warn() -> None:
    from promptnet import inference
    from promptnet.inference import editing, mixing

    with pytest.warns(DeprecationWarning, match="SamplingConfig"):
        assert inference.SamplingDefaults is inference.SamplingConfig  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.warns(DeprecationWarning, match=r"editing\.EditCard"):
        assert mixing.MixingWeights is editing.EditCard
    with pytest.warns(DeprecationWarning, match=r"editing\.EditError"):
        assert editing.MixingError is editing.EditError
