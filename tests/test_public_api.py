"""The package's public names, and what it costs to import it."""

import subprocess
import sys

import pytest

import promptnet


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, promptnet; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_names_are_listed_and_resolve_to_one_class() -> None:
    from diffusers import ModelMixin

    from promptnet.models.promptnet import PromptNetModel

    assert {"PromptNetPipeline", "Subject", "PromptNetModel", "ModelMixin"} <= set(dir(promptnet))
    assert promptnet.PromptNetModel is PromptNetModel
    assert promptnet.ModelMixin is ModelMixin


def test_version_is_the_installed_ones() -> None:
    from importlib.metadata import version

    assert promptnet.__version__ == version("promptnet")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pipeline'"):
        promptnet.Pipeline  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
