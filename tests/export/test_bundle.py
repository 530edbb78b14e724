"""A bundle loads as the pipeline that it was made of, and tells when it is not as it was written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from promptnet import PromptNetPipeline
from promptnet.export import ExportError
from promptnet.export.bundle import find_encoder, load_bundle, write_bundle
from promptnet.export.inspection import inspect_file
from promptnet.inference.editing.card import EditCard, edit_fingerprint
from promptnet.inference.editing.schedule_settings import schedule_settings

DRAW: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}


def drawn(pipe: Any, subject: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe("S* hat", subject=subject, generator=torch.Generator().manual_seed(0), **DRAW).images


@pytest.fixture
def card(pipes: dict[str, Any], tmp_path: Path) -> Path:
    pipe = pipes["sd"]
    weights, settings = torch.tensor([1.0, 0.0]), schedule_settings(pipe.scheduler)
    made = EditCard(weights, "dog", "hat", "DDIMScheduler", 3.0, edit_fingerprint(pipe), schedule=settings)
    made.save(tmp_path / "hat.safetensors")
    return tmp_path / "hat.safetensors"


@pytest.mark.parametrize("with_base", [True, False])
def test_a_bundle_draws_what_its_pipeline_drew(
    pipes: dict[str, Any],
    bases: dict[str, Path],
    make_subject: Callable[..., Any],
    card: Path,
    tmp_path: Path,
    with_base: bool,
) -> None:
    pipe, subject = pipes["sd"], make_subject(pipes["sd"])
    folder = write_bundle(pipe, tmp_path / "b", base=str(bases["sd"]), cards=[card], with_base=with_base)
    assert (folder / "unet").exists() == with_base
    assert (folder / "edits" / "hat.safetensors").is_file()
    loaded = PromptNetPipeline.from_pretrained(folder) if with_base else load_bundle(folder)
    torch.testing.assert_close(drawn(loaded, subject), drawn(pipe, subject), rtol=1e-4, atol=1e-4)
    assert inspect_file(folder).is_intact
    configs = [path.read_text("utf-8") for path in folder.rglob("config.json")]
    assert configs
    assert not [config for config in configs if "_name_or_path" in config]  # a path of this machine


def test_an_altered_bundle_is_found(pipes: dict[str, Any], bases: dict[str, Path], tmp_path: Path) -> None:
    folder = write_bundle(pipes["sd"], tmp_path / "b", base=str(bases["sd"]), with_base=False)
    (folder / "promptnet" / "config.json").write_text("{}")
    with pytest.raises(ExportError, match=r"not as it was written: promptnet/config\.json"):
        load_bundle(folder)
    assert inspect_file(folder).is_intact is False


def test_another_base_model_is_refused(pipes: dict[str, Any], bases: dict[str, Path], tmp_path: Path) -> None:
    folder = write_bundle(pipes["sd"], tmp_path / "b", base=str(bases["sd"]), with_base=False)
    other: Any = PromptNetPipeline.from_pretrained(bases["sd"])
    with torch.no_grad():
        other.unet.conv_in.weight += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ExportError, match="made with another base model: the weights of unet differ"):
        load_bundle(folder, base=str(tmp_path / "other"))


def test_a_card_of_another_base_model_is_not_taken_along(pipes: dict[str, Any], card: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another base model"):
        write_bundle(pipes["sdxl"], tmp_path / "b", base="x", cards=[card])
    assert not (tmp_path / "b").exists()


def test_a_pipeline_without_encoder_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    pipe = PromptNetPipeline.from_pretrained(bases["sd"])
    with pytest.raises(ExportError, match="no promptnet, image_encoder, feature_extractor"):
        write_bundle(pipe, tmp_path / "b", base="x")


def test_an_encoder_is_found_in_a_runs_folder(pipes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no exported encoder"):
        find_encoder(tmp_path)
    pipes["sd"].promptnet.save_pretrained(tmp_path / "export")
    assert find_encoder(tmp_path) == tmp_path / "export"
    assert find_encoder(tmp_path / "export") == tmp_path / "export"
