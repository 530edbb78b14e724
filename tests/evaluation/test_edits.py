"""The evaluation of edits: what is asked, what is scored, what is kept, with fakes for model and judge."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.datasets.avatars import FIELDS, Portrait
from promptnet.datasets.captions import mentioned
from promptnet.evaluation import edits as module
from promptnet.evaluation.drawing import weight_hashes
from promptnet.evaluation.edits import Pictures, estimate, evaluate_edits
from promptnet.evaluation.edits_cards import Learning, card_path
from promptnet.evaluation.edits_drawing import EditStudioSpec
from promptnet.evaluation.edits_marking import EditScores, averaged, difference
from promptnet.evaluation.edits_tasks import EDITS, NEUTRAL, Group, chosen_edits, make_groups
from promptnet.evaluation.edits_ways import EIGHT, LEDITS, ONE, ROWS, STYLED, SWITCH, Way, fixed_weights
from promptnet.inference.mixing import MixingWeights
from tests.evaluation.conftest import FakeJudge

PICTURES = Pictures(seeds=9, renders=9, subjects=3, learned_on=2)
HOW = Learning(num_steps=4, iterations=1)


# --- what is asked ------------------------------------------------------------------------------------------------


def test_every_prompt_asks_for_its_attribute_alone():
    assert len(EDITS) >= 8
    assert {edit.field for edit in EDITS.values()} >= {"expression", "glasses", "background", "clothes"}
    assert mentioned(NEUTRAL) == {}
    for edit in EDITS.values():
        assert mentioned(edit.styled) == {edit.field: edit.value}
        assert edit.value in FIELDS[edit.field]


def test_the_truth_differs_in_that_attribute_alone():
    (group,) = make_groups("renders", "test", 3)
    for portrait in group.portraits():
        edited = EDITS["sunglasses"].applied(portrait).record()
        assert {**edited, "glasses": portrait.attributes.glasses} == portrait.record()
        assert edited["glasses"] == "sunglasses"


def test_fewer_pictures_are_a_prefix_of_more_and_people_are_held_out():
    few, many = make_groups("renders", "test", 9, seed=3), make_groups("renders", "test", 20, seed=3)
    assert few[0] == many[0]
    assert many[1].asks[0] == few[1].asks[0]
    assert [len(group.asks) for group in many] == [8, 8, 4]
    people = {portrait.identity for group in many for portrait in group.portraits()}
    assert len(people) == 20
    validation = {p.identity for g in make_groups("renders", "validation", 20) for p in g.portraits()}
    assert not people & validation
    assert make_groups("seeds", "test", 4)[0].portraits() == []


# --- what is scored -----------------------------------------------------------------------------------------------


def scores(change: list[float], kept: list[float], asked: list[bool]) -> EditScores:
    values = {"change": np.array(change), "kept": np.array(kept)}
    return EditScores(np.array(asked), values, {})


def test_pictures_that_have_the_attribute_already_are_left_out():
    one = scores([1, 0, 1, 1], [0.5, 1, 1, 0], [True, True, True, False])
    assert one.interval("change").mean == pytest.approx(2 / 3)
    assert one.interval("kept").mean == pytest.approx(2.5 / 3)
    change, kept = 2 / 3, 2.5 / 3
    assert one.interval("both").mean == pytest.approx(2 * change * kept / (change + kept))


def test_averages_are_over_edits_with_the_same_pictures_resampled():
    good, bad = scores([1] * 8, [1] * 8, [True] * 8), scores([1, 0] * 4, [1] * 8, [True] * 8)
    found = averaged([good, bad], "both")
    assert found.mean == pytest.approx((1 + 2 / 3) / 2)
    assert found.low < found.mean < found.high
    assert difference([bad], [bad], "both").record() == {"mean": 0, "low": 0, "high": 0}
    assert difference([good], [bad], "both").low > 0


# --- the whole, with fakes ----------------------------------------------------------------------------------------


class FakeEditStudio:
    """Draws the truth with a learned card, the same for everybody with the plain prompt, no change with the switch."""

    def __init__(self, judge: FakeJudge, spec: EditStudioSpec) -> None:
        self.judge, self.drawn = judge, []

    def __call__(self, group: Group, way: Way) -> list[Image.Image]:
        self.drawn.append((group.source, way.name))
        shown = [ask.portrait or self.imagined(ask.seed) for ask in group.asks]
        if way.name in (EIGHT, ONE, LEDITS):
            shown = [way.edit.applied(portrait) for portrait in shown]  # pyright: ignore[reportOptionalMemberAccess]
        elif way.name == STYLED:
            shown = [way.edit.applied(shown[0])] * len(shown)  # pyright: ignore[reportOptionalMemberAccess]
        return [self.judge.render(portrait.identity, portrait.attributes) for portrait in shown]

    def imagined(self, seed: int) -> Portrait:
        everybody = [p for group in make_groups("renders", "test", 40) for p in group.portraits()]
        return everybody[seed % 40]


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch, judge: FakeJudge) -> FakeEditStudio:
    """In place of model, judge and learning."""

    def learn(tasks: Any, workers: int) -> list[MixingWeights]:
        made = []
        for task in tasks:
            weights = torch.full((task.how.num_steps,), task.num_seeds / 10)
            card = MixingWeights(weights, NEUTRAL, task.edit.styled, "DDIMScheduler", task.how.guidance_scale, {})
            card.save(task.path)
            made.append(card)
        return made

    spec: Any = None
    fake = FakeEditStudio(judge, spec)
    judge.learn([])
    for source in ("renders", "subjects"):
        for group in make_groups(source, "test", 9):
            for portrait in group.portraits():
                for edit in EDITS.values():
                    judge.render(portrait.identity, edit.applied(portrait).attributes)
    monkeypatch.setattr(module, "load_judge", lambda folder, device=None: judge)
    monkeypatch.setattr(module, "learn_cards", learn)
    monkeypatch.setattr(EditStudioSpec, "build", lambda self: fake)
    return fake


def run(base: Path, **more: Any) -> dict[str, Any]:
    return evaluate_edits(base, edits=["happy", "red-clothes"], pictures=PICTURES, how=HOW, workers=1, **more)


def test_rows_get_the_scores_they_deserve(base: Path, studio: FakeEditStudio, capsys: pytest.CaptureFixture[str]):
    results = run(base)
    for source in ("seeds", "renders"):
        rows = results["sources"][source]
        assert list(rows) == ["original", *ROWS]
        for name in (ONE, EIGHT):
            assert [rows[name]["mean"][metric]["mean"] for metric in ("change", "kept", "both")] == [1, 1, 1]
        assert rows[STYLED]["mean"]["change"]["mean"] == 1
        assert rows[STYLED]["mean"]["kept"]["mean"] < 0.9
        assert rows[SWITCH]["mean"]["change"]["mean"] == 0
        assert list(rows[LEDITS]["edits"]) == ["happy"]
        assert 0 < rows[EIGHT]["edits"]["happy"]["asked"] < 9
        assert rows[EIGHT]["edits"]["happy"]["fields"]["hair"] == 1
    renders = results["sources"]["renders"]
    assert renders[EIGHT]["mean"]["distance"]["mean"] < 1e-6 < renders[SWITCH]["mean"]["distance"]["mean"]
    assert "distance" not in results["sources"]["seeds"][EIGHT]["mean"]
    assert list(results["sources"]["subjects"]) == ["original", EIGHT]
    claims = results["claims"]
    assert claims["identity-stays"]["holds"]
    # Learned on one seed is as good here, and as good is not better.
    assert not claims["best-on-seeds"]["holds"]
    out = capsys.readouterr().out
    assert "U-Net items" in out
    assert "edits of renders" in out


def test_everything_is_kept_and_nothing_drawn_twice(base: Path, studio: FakeEditStudio, tmp_path: Path):
    out, cards = tmp_path / "out", tmp_path / "ready"
    for folder in (out, cards):
        folder.mkdir()
    results = run(base, out=out, cards=cards)
    assert json.loads((out / "results.json").read_text()) == results
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    assert sorted(path.name for path in cards.iterdir()) == ["happy.safetensors", "red-clothes.safetensors"]
    assert MixingWeights.load(cards / "happy.safetensors").weights.tolist() == pytest.approx([0.2] * 4)
    drawn = len(studio.drawn)
    assert run(base, out=out) == results
    assert len(studio.drawn) == drawn
    assert run(base, out=out, rows=[EIGHT])["sources"]["seeds"][EIGHT] == results["sources"]["seeds"][EIGHT]
    assert len(studio.drawn) == drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edits": ["beard"]}, "no edit 'beard'"),
        ({"rows": ["fast"]}, "no row 'fast'"),
        ({"split": "train"}, "split='train'"),
        ({"pictures": replace(PICTURES, renders=1000)}, "renders=1000"),
        ({"out": "missing"}, "'missing' does not exist"),
        ({"cards": "missing"}, "'missing' does not exist"),
        ({"how": replace(HOW, num_steps=0)}, "steps=0"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_learned(
    base: Path, studio: FakeEditStudio, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
):
    monkeypatch.setattr(module, "learn_cards", lambda *_: pytest.fail("learned"))
    with pytest.raises(ValueError, match=message):
        evaluate_edits(base, **{"pictures": PICTURES, "how": HOW, "workers": 1, **options})


# --- cards and ways -----------------------------------------------------------------------------------------------


def test_a_cards_name_holds_all_that_decides_it(tmp_path: Path):
    edit = EDITS["happy"]
    first = card_path(tmp_path, "base", edit, 8, HOW)
    assert first == card_path(tmp_path, "base", edit, 8, HOW)
    others = [
        card_path(tmp_path, "other", edit, 8, HOW),
        card_path(tmp_path, "base", EDITS["sad"], 8, HOW),
        card_path(tmp_path, "base", edit, 1, HOW),
        card_path(tmp_path, "base", edit, 8, replace(HOW, preserve=0.1)),
    ]
    assert len({first, *others}) == 5


def test_rows_that_learn_nothing():
    assert fixed_weights(STYLED, 5).tolist() == [0] * 5
    assert fixed_weights(SWITCH, 25).tolist() == [1] * 10 + [0] * 15


def test_ways_are_told_apart_by_what_decides_their_pictures():
    card = MixingWeights(torch.zeros(3), NEUTRAL, "a happy portrait of a person", "DDIMScheduler", 3.0, {})
    way = Way(EIGHT, "card", EDITS["happy"], card)
    records = [way.record(), replace(way, card=card.scaled(0.5)).record(), replace(way, correct_until=0.5).record()]
    records += [replace(way, kind="ledits", card=None).record(), Way("original", "original").record()]
    assert len({json.dumps(record, sort_keys=True) for record in records}) == 5
    assert replace(way, name="another").record() == way.record()


def test_the_estimate_grows_with_the_work():
    edits = chosen_edits(None)
    whole = estimate(len(edits), ROWS, Pictures(), Learning(), 2)
    assert whole.endswith("minutes in 2 processes at 9 ms an item")
    assert int(whole.split()[0]) > 2 * int(
        estimate(len(edits), (STYLED, EIGHT), Pictures(), Learning(iterations=5), 2).split()[0]
    )


def test_shipped_cards_do_not_change_what_the_base_model_is(base: Path):
    before = weight_hashes(base, [])
    (base / "edits").mkdir()
    (base / "edits" / "happy.safetensors").write_bytes(b"card")
    assert weight_hashes(base, []) == before
    (base / "unet" / "weights.safetensors").write_bytes(b"other")
    assert weight_hashes(base, []) != before
