"""What is known of an edit: figures on its card, and the warning before it breaks who is shown."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptnet import cli
from promptnet.inference.editing.card import EditCard, EditError, edit_fingerprint
from promptnet.inference.editing.edit_image import edit_image
from promptnet.inference.editing.measured import breaks, condition, losses
from promptnet.inference.editing.schedule_settings import schedule_settings
from promptnet.inference.editing.stock_pipeline import stock_arguments
from tests.inference.editing.test_card import stock
from tests.inference.editing.test_edit_image import allow_small_images

GOOD = {"images": 12.0, "change": 0.9, "kept": 0.95, "person": 0.9, "unedited": 0.98}
BAD = {**GOOD, "person": 0.61}
NEUTRAL = "a photo of a person"


def card_of(pipe: Any, **measured: dict[str, float]) -> EditCard:
    prompts = NEUTRAL, "a photo of a person wearing a hat"
    settings = {"fingerprint": edit_fingerprint(pipe), "schedule": schedule_settings(pipe.scheduler)}
    return EditCard(
        torch.linspace(1, 0, 4), *prompts, type(pipe.scheduler).__name__, 3.0, **settings, measured=measured
    )


def test_conditions_leave_out_what_goes_without_saying():
    assert condition("renders") == "renders"
    assert condition("renders", "style", "shift") == "renders, style, shift"
    assert condition("subjects", frame="zoom-0.7") == "subjects, zoom-0.7"


def test_an_edit_breaks_the_person_by_what_it_loses():
    """What a judge cannot read in the image itself is no loss of the edit."""
    assert not breaks(GOOD)
    assert breaks(BAD)
    assert not breaks({**BAD, "unedited": 0.7})
    measured = {"seeds": BAD, "renders": GOOD, "renders, shift": BAD, "renders, style": GOOD}
    assert list(losses(measured, "renders")) == ["renders, shift"]
    assert losses(measured, "subjects") == {}


def test_figures_come_back_with_the_card_and_cards_without_are_as_before(pipe: Any, tmp_path: Path):
    card = card_of(pipe, renders=BAD)
    card.save(tmp_path / "hat.safetensors")
    assert EditCard.load(tmp_path / "hat.safetensors").measured == {"renders": BAD}
    assert EditCard.from_bytes(card.to_bytes()).measured == {"renders": BAD}
    assert "measured" not in replace(card, measured={}).texts()
    assert card.at_steps(9).measured == card.scaled(1.0).measured == card.scaled(1.5).measured == {"renders": BAD}
    assert card.scaled(0.5).measured == {}  # nobody measured it so weak


@pytest.mark.parametrize(
    "measured",
    [
        ["renders"],
        {"renders": 0.5},
        {"renders": {"change": 0.5}},
        {"renders": {**GOOD, "kept": 1.5}},
        {"renders": {**GOOD, "person": float("nan")}},
        {"renders": {**GOOD, "unedited": "0.9"}},
        {3: GOOD},
    ],
)
def test_figures_that_cannot_be_are_refused(pipe: Any, measured: Any):
    with pytest.raises(EditError, match="measured="):
        replace(card_of(pipe), measured=measured)


def test_who_edits_is_told_what_the_edit_breaks(
    pipe: Any, make_subject: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    allow_small_images(monkeypatch)
    latents, image = torch.randn(1, 4, 8, 8), Image.new("RGB", (16, 16))
    options: dict[str, Any] = {"latents": latents, "output_type": "latent"}
    ways = {
        "seeds": lambda card: pipe(NEUTRAL, edits=card, **options),
        "subjects": lambda card: pipe("a photo of S*", subject=make_subject(pipe), edits=card, **options),
        "renders": lambda card: edit_image(pipe, image, card, output_type="latent"),
    }
    with caplog.at_level(logging.WARNING, logger="promptnet.inference.editing.measured"):
        for source, edit in ways.items():
            for name in ways:
                edit(card_of(pipe, **{name: BAD}))
                assert bool(caplog.records) == (name == source)
                if name == source:
                    said = caplog.text
                    assert f"61% in 12 {name} (98% without the edit)" in said
                    assert "'a photo of a person wearing a hat' is known to change who is shown" in said
                caplog.clear()
            edit(card_of(pipe, **{source: GOOD}))
            edit(card_of(pipe, **{source: BAD}).scaled(0.5))
            assert not caplog.records


def test_a_stock_pipeline_is_told_too(pipe: Any, caplog: pytest.LogCaptureFixture):
    theirs = stock(pipe)
    stock_arguments(theirs, card_of(pipe, seeds=GOOD))
    assert not caplog.records
    stock_arguments(theirs, card_of(pipe, seeds=BAD))
    assert "known to change who is shown" in caplog.text


def test_inspect_shows_the_figures(pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "hat.safetensors"
    card_of(pipe, **{"renders, shift": BAD}).save(path)
    assert cli.main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "measured on renders, shift" in said
    assert "12 images: shown in 90%, other fields kept 95%, who it is 61% (98% unedited)" in said
