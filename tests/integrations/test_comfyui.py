"""The nodes on the embedded model, beside fakes of ComfyUI's interfaces."""

import json
import stat
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.conftest import PACK, noise_batch

Run = Callable[..., Any]
QUICK = {"steps": 2, "settings": {"fusion_steps": 1}}
LET_IN = {"allow_foreign": True, "registration": "never"}


# --- schemas, package, workflow -----------------------------------------------------------------------------------


def test_nodes_have_ids_and_names_of_their_own(nodes: dict[str, Any]) -> None:
    assert len(nodes) == len({node.define_schema().display_name for node in nodes.values()})
    for name, node in nodes.items():
        schema = node.define_schema()
        assert name.startswith("PromptNet")
        assert schema.category == "promptnet"
        assert len({each.id for each in schema.inputs}) == len(schema.inputs)


def test_the_workflow_fits_the_nodes(nodes: dict[str, Any]) -> None:
    stock = {"LoadImage": ({"image"}, ["IMAGE", "MASK"]), "SaveImage": ({"images", "filename_prefix"}, [])}
    workflow = json.loads((PACK / "workflow-api.json").read_text("utf-8"))
    types = {
        key: stock[entry["class_type"]][1]
        if entry["class_type"] in stock
        else [output.io_type for output in nodes[entry["class_type"]].define_schema().outputs]
        for key, entry in workflow.items()
    }
    for entry in workflow.values():
        if entry["class_type"] in stock:
            assert set(entry["inputs"]) == stock[entry["class_type"]][0]
            continue
        inputs = {each.id: each for each in nodes[entry["class_type"]].define_schema().inputs}
        assert {name for name, each in inputs.items() if not each.optional} <= set(entry["inputs"]) <= set(inputs)
        for name, value in entry["inputs"].items():
            if isinstance(value, list):
                assert types[value[0]][value[1]] == inputs[name].io_type
            else:
                assert inputs[name].has_widget
                assert type(value) is type(inputs[name].default) or value in inputs[name].options


def test_the_packs_metadata_is_what_the_registry_asks() -> None:
    found = tomllib.loads((PACK / "pyproject.toml").read_text("utf-8"))
    project, comfy = found["project"], found["tool"]["comfy"]
    assert "comfyui" not in project["name"].lower()
    assert len(project["version"].split(".")) == 3
    assert project["license"] == {"text": "Apache-2.0"}
    assert set(comfy) == {"PublisherId", "DisplayName", "Icon", "requires-comfyui"}
    assert "Repository" in project["urls"]
    assert (PACK / "requirements.txt").read_text("utf-8").split() == project["dependencies"]


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="need the package promptnet in ComfyUI's Python"):
        exec(compile((PACK / "__init__.py").read_text("utf-8"), "pack", "exec"), {"__name__": "pack"})


# --- from an image to images --------------------------------------------------------------------------------------


def test_the_base_models_offered_are_folders_with_an_index(nodes: dict[str, Any], models_dir: Path) -> None:
    (models_dir / "diffusers" / "empty").mkdir(exist_ok=True)
    options = {each.id: each for each in nodes["PromptNetLoadBase"].define_schema().inputs}["base"].options
    assert options == ["tiny"]


def test_images_of_a_subject_are_what_the_pipeline_draws(run: Run, pipeline: Any, subject: Any, comfy: Any) -> None:
    found = run(
        "PromptNetFusionSampler", pipeline=pipeline, subject=subject, prompt="a portrait of S*", seed=5,
        batch_size=2, **QUICK
    )  # fmt: skip
    assert found.shape == (2, 64, 64, 3)
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) < float(found.max()) <= 1
    expected = pipeline(
        "a portrait of S*", subject=subject, num_inference_steps=2, fusion_steps=1, num_images_per_prompt=2,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)], output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-6)
    assert comfy.utils.shown == [(1, 2), (2, 2)]
    assert comfy.management.num_checks == 3
    assert comfy.management.freed[0][0] > 10_000_000


def test_a_subject_is_encoded_tuned_saved_and_loaded(run: Run, pipeline: Any, models_dir: Path, comfy: Any) -> None:
    """The pipeline was loaded in ComfyUI's inference mode, and is tuned all the same."""
    images = {"image": noise_batch(2, channels=4), **LET_IN}
    tuned = run("PromptNetEncode", pipeline=pipeline, **images, steps=2, class_word="woman")
    assert tuned.class_word == "woman"
    assert tuned.num_references == 2
    assert comfy.utils.shown == [(1, 2), (2, 2)]
    assert run("PromptNetSaveSubject", subject=tuned, name="somebody") == ()
    path = models_dir / "promptnet" / "subjects" / "somebody.safetensors"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert run("PromptNetLoadSubject", file="somebody.safetensors").content_hash == tuned.content_hash


def test_two_people_and_the_settings_reach_the_pipeline(run: Run, pipeline: Any, subject: Any) -> None:
    two = {"pipeline": pipeline, "subject": subject, "second_subject": subject, "prompt": "S1* and S2*", "steps": 1}
    images = [
        run("PromptNetFusionSampler", **two, settings=run("PromptNetSettings", fusion_steps=0, subject_scale=scale))
        for scale in (1.0, 5.0)
    ]
    assert not torch.allclose(images[0], images[1], atol=1e-3)


def test_the_settings_shown_are_those_of_a_call_without_any(run: Run) -> None:
    from promptnet.inference import SamplingConfig

    defaults = SamplingConfig()
    assert run("PromptNetSettings") == {name: getattr(defaults, name) for name in run("PromptNetSettings")}


def test_the_stop_button_stops_between_steps(run: Run, pipeline: Any, subject: Any, comfy: Any) -> None:
    comfy.management.stop_after = 2
    with pytest.raises(comfy.management.InterruptProcessingException):
        run("PromptNetFusionSampler", pipeline=pipeline, subject=subject, prompt="S*", steps=9)
    assert comfy.utils.shown == [(1, 9), (2, 9)]
    comfy.management.stop_after = None
    assert run("PromptNetFusionSampler", pipeline=pipeline, subject=subject, prompt="S*", **QUICK).isfinite().all()


def test_the_stop_button_stops_tuning(run: Run, pipeline: Any, comfy: Any) -> None:
    comfy.management.stop_after = 1
    with pytest.raises(comfy.management.InterruptProcessingException):
        run("PromptNetEncode", pipeline=pipeline, image=noise_batch(), **LET_IN, steps=9)
    assert comfy.utils.shown == [(1, 9)]


# --- edits --------------------------------------------------------------------------------------------------------


@pytest.fixture
def card_file(models_dir: Path, pipeline: Any) -> str:
    """An edit card of the embedded model, for few steps."""
    from promptnet.inference.editing import EditCard
    from promptnet.inference.editing.card import edit_fingerprint

    texts = "a portrait of a person", "a happy portrait of a person"
    card = EditCard(torch.full((3,), 0.4), *texts, "DDIMScheduler", 3.0, edit_fingerprint(pipeline))
    card.save(models_dir / "promptnet" / "edits" / "happy.safetensors")
    return "happy.safetensors"


def test_an_edit_changes_the_image_by_its_strength(run: Run, pipeline: Any, subject: Any, card_file: str) -> None:
    options = {"pipeline": pipeline, "subject": subject, "prompt": "a portrait of S*", "settings": {"fusion_steps": 0}}
    edits = [run("PromptNetLoadEdit", file=card_file, strength=strength) for strength in (0.0, 1.0)]
    assert len(edits[1]) == 1
    none, one = (run("PromptNetFusionSampler", **options, edits=each) for each in edits)
    assert float((none - one).abs().max()) > 1e-3
    both = run("PromptNetLoadEdit", file=card_file, edits=edits[0])
    again = run("PromptNetFusionSampler", **options, edits=both)
    torch.testing.assert_close(again, one, rtol=0, atol=1e-4)


def entry(value: float, tokens: int = 77, pooled: bool = False) -> list[Any]:
    about = {"pooled_output": torch.full((1, 6), value)} if pooled else {}
    return [[torch.full((1, tokens, 8), value), about]]


def timesteps_of(scheduler: str, num_steps: int) -> list[float]:
    """The timesteps at which ComfyUI's schedulers put their steps, of 1000."""
    if scheduler == "normal":
        return torch.linspace(999, 0, num_steps, dtype=torch.float64).tolist()
    if scheduler == "simple":
        return [999.0 - int(step * 1000 / num_steps) for step in range(num_steps)]
    return [float(step * (1000 // num_steps) + 1) for step in reversed(range(num_steps))]


def acting(entries: list[Any], timestep: float) -> list[Any]:
    """The entries that ComfyUI evaluates at a timestep: both ends of a range belong to it."""
    percent = 1 - timestep / 999
    return [each for each in entries if each[1]["start_percent"] <= percent <= each[1]["end_percent"]]


@pytest.mark.parametrize("scheduler", ["normal", "simple", "ddim_uniform"])
@pytest.mark.parametrize("num_steps", [4, 20, 50])
def test_a_card_on_stock_conditioning_has_each_steps_weight(
    run: Run, card: Any, scheduler: str, num_steps: int
) -> None:
    weights = torch.rand(num_steps, generator=torch.Generator().manual_seed(0))
    weights[1] = weights[2]  # one entry for two steps
    given = {"positive": entry(2.0, pooled=True), "neutral": entry(0.0, pooled=True), "styled": entry(1.0, pooled=True)}
    entries, neutral, styled = run("PromptNetEditConditioning", edits=[card(weights)], **given)
    assert (neutral, styled) == ("a person", "a happy person")
    assert len(entries) == num_steps - 1
    for weight, timestep in zip(weights.tolist(), timesteps_of(scheduler, num_steps), strict=True):
        (found,) = acting(entries, timestep)
        torch.testing.assert_close(found[0], torch.full((1, 77, 8), 2 + 1 - weight))
        torch.testing.assert_close(found[1]["pooled_output"], torch.full((1, 6), 2 + 1 - weight))


@pytest.fixture
def card() -> Callable[[torch.Tensor], Any]:
    from promptnet.inference.editing import EditCard

    return lambda weights: EditCard(weights, "a person", "a happy person", "DDIMScheduler", 3.0, {})


def test_nodes_in_a_row_add_up(run: Run, card: Any) -> None:
    first, second = card(torch.tensor([1.0, 0.0])), card(torch.tensor([0.5, 0.5, 1.0, 1.0]))
    pair = {"neutral": entry(0.0), "styled": entry(1.0)}
    half, *_ = run("PromptNetEditConditioning", edits=[first], positive=entry(0.0), **pair)
    both, *_ = run("PromptNetEditConditioning", edits=[second], positive=half, **pair)
    found = [float(acting(both, timestep)[0][0][0, 0, 0]) for timestep in (999, 700, 300, 0)]
    assert found == [0.5, 0.5, 1.0, 1.0]
    assert all(len(acting(both, timestep)) == 1 for timestep in range(1000))


def test_conditioning_that_does_not_fit_an_edit_is_refused(run: Run, card: Any) -> None:
    edit, good = card(torch.tensor([1.0, 0.0])), entry(0.0)
    with pytest.raises(ValueError, match="edits holds 2 cards"):
        run("PromptNetEditConditioning", edits=[edit, edit], positive=good, neutral=good, styled=good)
    with pytest.raises(ValueError, match="neutral has 2 entries"):
        run("PromptNetEditConditioning", edits=[edit], positive=good, neutral=good + good, styled=good)
    with pytest.raises(ValueError, match=r"shapes \[\(77, 8\), \(77, 8\), \(154, 8\)\]"):
        run("PromptNetEditConditioning", edits=[edit], positive=good, neutral=good, styled=entry(1.0, tokens=154))


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a photo of a person"}, r"does not mention S\*"),
        ({"prompt": "S1* and S2*"}, r"mentions S2\*, but the 1 subject"),
        ({"prompt": "S*", "negative": "S*"}, "takes plain words only"),
        ({"prompt": "S*", "width": 72}, r"width=72 pixels must be a multiple of \d+ .* the nearest is"),
        ({"prompt": "S*", "settings": {"fusion_end": 2.0}}, "fusion_end"),
    ],
    ids=str,
)
def test_bad_input_of_the_sampler_is_said(
    run: Run, pipeline: Any, subject: Any, comfy: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run("PromptNetFusionSampler", pipeline=pipeline, subject=subject, **options)
    assert comfy.utils.shown == []


def test_a_subject_of_another_base_is_refused(run: Run, pipeline: Any, subject: Any) -> None:
    from dataclasses import replace

    other = replace(subject, fingerprint={**subject.fingerprint, "unet": "another"}, base="another")
    with pytest.raises(ValueError, match=r"another base model \(another\).*the weights of unet differ"):
        run("PromptNetFusionSampler", pipeline=pipeline, subject=other, prompt="S*")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(64, 64, 3), r"must be \(B, H, W, 3\).* is \[64, 64, 3\]"),
        (torch.rand(0, 64, 64, 3), "at least one image"),
        (torch.rand(1, 3, 64, 64), r"is \[1, 3, 64, 64\]"),
        (torch.full((1, 64, 64, 3), float("nan")), "no numbers"),
        (torch.rand(1, 8, 8, 3), "too small|at least"),
    ],
    ids=["one image", "empty", "channels first", "nan", "tiny"],
)
def test_bad_images_are_refused(run: Run, pipeline: Any, image: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("PromptNetEncode", pipeline=pipeline, image=image, tune=False)


def test_an_image_that_the_encoder_does_not_know_is_refused(run: Run, pipeline: Any) -> None:
    stripes = torch.zeros(1, 16, 4, 64, 3).index_fill(2, torch.tensor([0, 1]), 1.0).flatten(1, 2)
    with pytest.raises(ValueError, match="it would draw somebody else"):
        run("PromptNetEncode", pipeline=pipeline, image=stripes, tune=False, registration="never")
    assert not run("PromptNetEncode", pipeline=pipeline, image=stripes, tune=False, **LET_IN).loras


@pytest.mark.parametrize(
    ("node", "name", "message"),
    [
        (
            "PromptNetLoadSubject",
            {"file": "nobody.safetensors"},
            "no file 'nobody.safetensors' in models/promptnet/subj",
        ),
        ("PromptNetLoadSubject", {"file": "../../secret.safetensors"}, "no file"),
        (
            "PromptNetLoadEdit",
            {"file": "nothing.safetensors"},
            "no file 'nothing.safetensors' in models/promptnet/edits",
        ),
        ("PromptNetLoadBase", {"base": "nowhere"}, "no base model 'nowhere' in models/diffusers"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_missing_files_are_said(run: Run, node: str, name: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(node, **name)


def test_a_broken_subject_is_refused(run: Run, models_dir: Path) -> None:
    (models_dir / "promptnet" / "subjects" / "broken.safetensors").write_bytes(b"no subject")
    with pytest.raises(ValueError, match="Subject file"):
        run("PromptNetLoadSubject", file="broken.safetensors")


@pytest.mark.parametrize("name", ["", "  ", "../me", "a/b", ".hidden", "c:me", "a\0b"])
def test_a_subject_is_saved_in_its_folder_alone(run: Run, subject: Any, name: str) -> None:
    with pytest.raises(ValueError, match="must be the name of a file"):
        run("PromptNetSaveSubject", subject=subject, name=name)


def test_a_subject_is_never_replaced(run: Run, subject: Any) -> None:
    run("PromptNetSaveSubject", subject=subject, name="once")
    with pytest.raises(ValueError, match=r"a subject 'once\.safetensors' already"):
        run("PromptNetSaveSubject", subject=subject, name="once.safetensors")


def test_a_file_written_anew_is_read_anew(nodes: dict[str, Any], run: Run, subject: Any, models_dir: Path) -> None:
    import os

    run("PromptNetSaveSubject", subject=subject, name="changing")
    node, name = nodes["PromptNetLoadSubject"], "changing.safetensors"
    before = node.fingerprint_inputs(name)
    os.utime(models_dir / "promptnet" / "subjects" / name, (1, 1))
    assert node.fingerprint_inputs(name) != before


def test_nothing_of_comfyui_is_left_for_other_tests() -> None:
    """The pack runs inside fixtures; the package itself never asks for ComfyUI."""
    package = Path(sys.modules["promptnet"].__file__ or "").parent
    assert not [path for path in package.rglob("*.py") if "comfy_api" in path.read_text("utf-8")]
