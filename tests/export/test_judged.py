"""The validation judge's reading of images drawn with exports, on the embedded model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from promptnet import PromptNetPipeline
from promptnet.commands import export as command
from promptnet.export import Passport, mean_static, timed_words, verify, write_files
from promptnet.export.verification import judged, reader, run
from promptnet.export.verification.judged import Drawing, Reading, exact_images, judge_beside, share_of_fields
from promptnet.export.verification.verdict import Verdict, verdict_path

ROOT = Path(__file__).parents[2]
BASE = ROOT / "checkpoints" / "tiny"
PROMPT = "a portrait of S*"


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded: Any = PromptNetPipeline.from_pretrained(BASE)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def subject(pipe: Any) -> Any:
    from PIL import Image

    pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return pipe.encode(Image.fromarray(pixels.numpy()), registration="never", allow_foreign=True)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of two steps, read in this process."""

    def read_here(job: dict[str, Any], passing: Path) -> None:
        (passing / "job.json").write_text(json.dumps(job), "utf-8")
        reader.main(passing / "job.json")

    monkeypatch.setattr(run, "_run_reader", read_here)
    monkeypatch.setattr(judged, "NUM_IMAGES", 2)
    monkeypatch.setattr(judged, "NUM_STEPS", 2)


def test_the_judge_is_looked_for_in_the_base_model_and_beside_it(tmp_path: Path) -> None:
    found = judge_beside(BASE)
    assert found == ROOT / "checkpoints" / "judges" / "validation"
    assert judge_beside(tmp_path) is None
    own = tmp_path / "judges" / "validation"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    assert judge_beside(tmp_path) == judge_beside(tmp_path / "tiny") == own.resolve()
    assert judge_beside("owner/name") is None


def test_the_share_of_fields_counts_identity_alone() -> None:
    one = {"style": "a", "skin": "fair", "hair": "bun", "expression": "sad"}
    other = {"style": "a", "skin": "dark", "hair": "bun", "expression": "happy"}
    assert share_of_fields([one], [other]) == pytest.approx(2 / 3)
    assert share_of_fields([one, one], [one, other]) == pytest.approx(5 / 6)
    assert share_of_fields([one], [one]) == 1
    assert math.isnan(share_of_fields([{"mood": "calm"}], [{"mood": "calm"}]))


def test_the_exact_images_are_read_as_themselves(pipe: Any, subject: Any, few: None) -> None:
    how, folder = Drawing.of(pipe, subject, PROMPT), judge_beside(BASE)
    assert folder is not None
    images = exact_images(pipe, subject, how)
    assert images.shape == (2, 3, 64, 64)
    reading = Reading(folder, pipe, subject, how)
    found = reading.of(images)
    assert found["same_fields"] == 1
    assert found["distance"] == pytest.approx(0, abs=1e-6)
    assert found["identity"] == found["identity_exact"]
    assert reading.of(1 - images)["distance"] > 1e-3


def test_verdicts_hold_what_the_judge_says(
    pipe: Any, subject: Any, few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    static = replace(mean_static(pipe, subject), timed=timed_words(pipe, subject, num_levels=11))
    paths = write_files(static, ["textual-inversion", "word-table"], tmp_path, "me", Passport({}))
    found = {
        verdict.format: verdict
        for verdict in verify(pipe, BASE, subject, static, paths, prompt=PROMPT, judge=judge_beside(BASE))
    }
    for name, verdict in found.items():
        assert verdict.is_good, verdict
        assert set(verdict.images) == {"identity", "identity_exact", "same_fields", "distance"}
        assert all(0 <= value <= 2 for value in verdict.images.values())
        record = json.loads(verdict_path(paths[name]).read_text("utf-8"))[0]
        assert record["images"] == verdict.images
    assert len({verdict.images["identity_exact"] for verdict in found.values()}) == 1
    command.show_verdicts(list(found.values()), "read back")
    said = capsys.readouterr().err
    assert "identity" in said
    assert "exact" in said


def test_the_table_has_no_columns_for_a_judge_that_was_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    command.show_verdicts([Verdict("kohya", "diffusers", "me.safetensors")], "read back")
    assert "identity" not in capsys.readouterr().err
