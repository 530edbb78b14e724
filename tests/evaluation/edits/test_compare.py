"""The evaluation of edits with fakes for model and judge: tasks, scores, cards and cached images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.datasets.avatars.captions import caption, mentioned
from promptnet.datasets.avatars.colours import NAMES
from promptnet.datasets.avatars.person import FIELDS, Attributes, Avatar, Identity, World
from promptnet.datasets.avatars.render import render_avatar
from promptnet.datasets.avatars.styles import STYLES
from promptnet.evaluation.edits import compare as module
from promptnet.evaluation.edits.cards import DDIM, Learning, Teacher, card_path, given_cards, loss_parts
from promptnet.evaluation.edits.compare import (
    Images,
    all_cards,
    as_cached,
    card_tasks,
    estimate,
    evaluate_edits,
    seconds_record,
)
from promptnet.evaluation.edits.generate import EditRendererSpec
from promptnet.evaluation.edits.measured import measured_before
from promptnet.evaluation.edits.methods import (
    EIGHT,
    LEDITS,
    METHODS,
    ONE,
    ORIGINAL,
    STYLED,
    EditMethod,
    fixed_weights,
)
from promptnet.evaluation.edits.results import checks, stays_rates
from promptnet.evaluation.edits.score import EditScores, averaged, difference, make_scorer
from promptnet.evaluation.edits.tasks import EDITS, NEUTRAL, EvalPrompt, Group, chosen_edits, make_groups, moved_back
from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.renderer import weight_hashes
from promptnet.evaluation.method_names import SWITCH
from promptnet.inference.editing.card import EditCard
from promptnet.models.judge import AvatarJudge
from tests.evaluation.conftest import FakeJudge
from tests.training.editing.edit_base import build_edit_base

IMAGES = Images(seeds=9, renders=9, subjects=3, learned_on=2)
HOW = Learning(num_steps=4, iterations=1, teacher="clip")


# --- tasks --------------------------------------------------------------------------------------------------------


def test_every_prompt_asks_for_its_attribute_alone():
    assert len(EDITS) >= 8
    assert {edit.field for edit in EDITS.values()} >= {"expression", "glasses", "background", "clothes"}
    assert caption({}) == NEUTRAL
    for edit in EDITS.values():
        assert edit.styled == caption({edit.field: edit.value})
        assert mentioned(edit.styled) == {edit.field: edit.value}
        assert edit.value in FIELDS[edit.field]


def test_the_truth_differs_in_that_attribute_alone():
    groups = make_groups("renders", "test", 12)
    for avatar in [avatar for group in groups for avatar in group.avatars()]:
        for edit in EDITS.values():
            edited = edit.applied(avatar)
            assert {**edited.record(), edit.field: avatar.record()[edit.field]} == avatar.record()
            assert edited.record()[edit.field] == edit.value
            assert edited.identity == avatar.identity
            own = {name: getattr(avatar.attributes, name) for name in vars(avatar.attributes)}
            other = {name for name, value in own.items() if getattr(edited.attributes, name) != value}
            assert other <= {edit.field, *({"drawing"} if edit.field == "expression" else ())}


def test_the_truth_of_an_edit_is_exact():
    worn = Attributes("sad", "glasses", "#24366b", "shirt", "#1f7d3c", drawing=2, frame="square")
    avatar = Avatar(Identity("micah", "#dba36f", "bob", "#1d1a22"), worn)
    applied = {name: edit.applied(avatar).attributes for name, edit in EDITS.items()}
    assert applied["happy"] == replace(worn, expression="happy", drawing=0)
    assert applied["sad"] == applied["navy-background"] == worn  # nothing is asked of those who have it
    assert applied["sunglasses"] == replace(worn, glasses="sunglasses")  # in the frame they wear
    assert applied["pink-background"] == replace(worn, background=NAMES["background"]["pink"])
    assert applied["red-clothes"] == replace(worn, clothes_color=NAMES["clothes_color"]["red"])
    assert applied["t-shirt"] == replace(worn, clothes="t-shirt")


def test_renders_and_truths_come_in_the_frame_asked_for():
    (plain,), (moved,) = (make_groups("renders", "test", 2, frame=frame) for frame in ("plain", "zoom-0.7"))
    assert plain.avatars() == moved.avatars()
    happy = EDITS["happy"]
    for edit in (None, happy):
        shown = [avatar if edit is None else edit.applied(avatar) for avatar in plain.avatars()]
        assert plain.renders(64, edit) == [render_avatar(avatar, 64) for avatar in shown]
        for avatar, image in zip(shown, moved.renders(64, edit), strict=True):
            corner, background = np.asarray(image)[0, 0], avatar.attributes.background
            assert image.size == (64, 64)
            assert "#{:02x}{:02x}{:02x}".format(*corner) == background
            assert image != render_avatar(avatar, 64)
    assert make_groups("seeds", "test", 2, frame="shift") == make_groups("seeds", "test", 2)


@pytest.mark.parametrize("name", ["shift", "zoom-0.7", "zoom-1.2", "mirrored", "jpeg-60"])
def test_faces_are_read_in_their_usual_place(name: str):
    """Judges read a moved face no better than guessing: it is moved back before."""
    (plain,), (moved,) = (make_groups("renders", "test", 4, frame=frame) for frame in ("plain", name))
    errors = {"moved": 0.0, "back": 0.0}
    for before, after in zip(plain.renders(64), moved.renders(64), strict=True):
        for place, image in {"moved": after, "back": moved_back(after, moved.frame)}.items():
            middles = [np.asarray(one, float)[20:44, 20:44] for one in (before, image)]
            errors[place] += np.abs(middles[0] - middles[1]).mean() / 4
    assert errors["back"] < 20
    assert name == "jpeg-60" or errors["back"] < 0.7 * errors["moved"]


@pytest.mark.parametrize(("world", "held_out"), [("style", True), ("known", False)])
def test_a_world_decides_whose_renders_are_edited(world: World, held_out: bool):
    (group,) = make_groups("renders", "test", 6, world=world)
    assert {STYLES[avatar.identity.style].is_held_out for avatar in group.avatars()} == {held_out}


def test_fewer_images_are_a_prefix_of_more_and_people_are_held_out():
    few, many = make_groups("renders", "test", 9, seed=3), make_groups("renders", "test", 20, seed=3)
    assert few[0] == many[0]
    assert many[1].eval_prompts[0] == few[1].eval_prompts[0]
    assert [len(group.eval_prompts) for group in many] == [8, 8, 4]
    people = {repr(avatar.identity) for group in many for avatar in group.avatars()}
    assert len(people) == 20
    validation = {repr(p.identity) for g in make_groups("renders", "validation", 20) for p in g.avatars()}
    assert not people & validation
    assert len([p for g in make_groups("renders", "test", 1000) for p in g.avatars()]) == 1000  # a split has no end
    assert make_groups("seeds", "test", 4)[0].avatars() == []


# --- scores -------------------------------------------------------------------------------------------------------


def scores(change: list[float], kept: list[float], asked: list[bool]) -> EditScores:
    values = {"change": np.array(change), "kept": np.array(kept)}
    return EditScores(np.array(asked), values, {})


def test_images_that_have_the_attribute_already_are_left_out():
    one = scores([1, 0, 1, 1], [0.5, 1, 1, 0], [True, True, True, False])
    assert one.interval("change").mean == pytest.approx(2 / 3)
    assert one.interval("kept").mean == pytest.approx(2.5 / 3)
    change, kept = 2 / 3, 2.5 / 3
    assert one.interval("both").mean == pytest.approx(2 * change * kept / (change + kept))


def test_averages_are_over_edits_with_the_same_images_resampled():
    good, bad = scores([1] * 8, [1] * 8, [True] * 8), scores([1, 0] * 4, [1] * 8, [True] * 8)
    found = averaged([good, bad], "both")
    assert found.mean == pytest.approx((1 + 2 / 3) / 2)
    assert found.low < found.mean < found.high
    assert difference([bad], [bad], "both").record() == {"mean": 0, "low": 0, "high": 0}
    assert difference([good], [bad], "both").low > 0


def of_subjects(**identity: list[float]) -> dict[str, Any]:
    """Return scores of subjects by edit, "" for the unedited images."""
    asked = np.ones(4, dtype=bool)
    methods = {name: EditScores(asked, {"identity": np.array(values)}, {}) for name, values in identity.items()}
    return {"subjects": {ORIGINAL: {"": methods.pop("before")}, EIGHT: methods}}


def test_a_higher_identity_counts_as_a_change_too_and_the_worst_edit_is_named():
    near = checks(of_subjects(before=[0.5] * 4, happy=[0.52] * 4, sad=[0.5, 0.5, 0.5, 0.34]))["identity-stays"]
    assert near.holds
    assert "worst sad, -0.040" in near.statement
    assert near.figures["edited minus unedited"].mean == pytest.approx(-0.01)
    assert f"at the low end {near.figures['edited minus unedited'].low:+.3f}" in near.statement
    for value in (0.4, 0.6):
        assert not checks(of_subjects(before=[0.5] * 4, happy=[value] * 4))["identity-stays"].holds
    opposite = checks(of_subjects(before=[0.5] * 4, happy=[0.6] * 4, sad=[0.4] * 4))["identity-stays"]
    assert not opposite.holds


def test_nothing_is_best_without_rivals_and_intervals_may_overlap():
    good = scores([1] * 8, [1] * 8, [True] * 8)
    near = scores([1.0] * 7 + [0.0], [1] * 8, [True] * 8)
    bad = scores([0] * 8, [1] * 8, [True] * 8)
    assert checks({"seeds": {ORIGINAL: {"": good}, EIGHT: {"happy": good}}}) == {}
    assert checks({"seeds": {EIGHT: {"happy": good}, STYLED: {"sad": bad}}}) == {}
    check = checks({"seeds": {EIGHT: {"happy": good}, STYLED: {"happy": bad}, SWITCH: {"happy": near}}})[
        "best-on-seeds"
    ]
    assert check.holds
    assert check.record()["apart"] == {STYLED: True, SWITCH: False}
    assert "intervals not apart from fixed-switch" in check.statement


def test_a_field_stays_under_the_edits_of_others():
    asked, always, never = np.ones(4, dtype=bool), np.ones(4), np.zeros(4)
    one = EditScores(asked, {}, {"expression": never, "hair": always})
    other = EditScores(asked, {}, {"expression": always, "hair": np.array([1.0, 0, 1, 0])})
    found = stays_rates({"happy": one, "sunglasses": other})
    assert found["expression"].record() == {"mean": 1, "low": 1, "high": 1}
    assert found["hair"].mean == 0.75
    assert 0.5 <= found["hair"].low < 0.75 < found["hair"].high <= 1


def test_a_render_that_would_look_the_same_is_left_out(judge: FakeJudge):
    """One style's beard covers the mouth: nobody can see who is happy."""
    everybody = [avatar for group in make_groups("renders", "test", 80) for avatar in group.avatars()]
    happy = EDITS["happy"]
    hidden = next(
        avatar
        for avatar in everybody
        if avatar.attributes.expression != "happy"
        and render_avatar(avatar, 64) == render_avatar(happy.applied(avatar), 64)
    )
    shown = next(a for a in everybody if a.attributes.expression == "sad" and a.identity.beard == "none")
    group = Group(0, "renders", (EvalPrompt(0, hidden), EvalPrompt(1, shown)))
    images = [judge.render(avatar.identity, avatar.attributes) for avatar in group.avatars()]
    for avatar in group.avatars():
        judge.render(avatar.identity, happy.applied(avatar).attributes)
    assert make_scorer("renders", [group], images, judge, 64).score(happy, images).asked.tolist() == [False, True]


# --- the evaluation, with fakes -----------------------------------------------------------------------------------


class FakeEditRenderer:
    """Generate the truth with a learned card, one person's truth with the prompt, no change with the switch."""

    def __init__(self, judge: FakeJudge, spec: EditRendererSpec) -> None:
        self.judge, self.generated = judge, []

    def __call__(self, group: Group, edit_method: EditMethod) -> list[Image.Image]:
        self.generated.append((group.source, edit_method.name))
        shown = [eval_prompt.avatar or self.imagined(eval_prompt.seed) for eval_prompt in group.eval_prompts]
        if edit_method.name in (EIGHT, ONE, LEDITS):
            shown = [edit_method.edit.applied(avatar) for avatar in shown]  # pyright: ignore[reportOptionalMemberAccess]
        elif edit_method.name == STYLED:
            shown = [edit_method.edit.applied(shown[0])] * len(shown)  # pyright: ignore[reportOptionalMemberAccess]
        return [self.judge.render(avatar.identity, avatar.attributes) for avatar in shown]

    def imagined(self, seed: int) -> Avatar:
        everybody = [p for group in make_groups("renders", "test", 40) for p in group.avatars()]
        shown = [avatar for avatar in everybody if avatar.identity.beard == "none"]  # some beards hide the mouth
        return shown[seed % len(shown)]


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch, judge: FakeJudge) -> FakeEditRenderer:
    """Replace model, judge and learning with fakes."""

    def learn(tasks: Any, workers: int) -> list[EditCard]:
        made = []
        for task in tasks:
            weights = torch.full((task.how.num_steps,), task.num_seeds / 10)
            card = EditCard(weights, NEUTRAL, task.edit.styled, "DDIMScheduler", task.how.guidance_scale, {})
            card.save(task.path)
            made.append(card)
        return made

    spec: Any = None
    fake = FakeEditRenderer(judge, spec)
    judge.learn([])
    for source in ("renders", "subjects"):
        for group in make_groups(source, "test", 9):
            for avatar in group.avatars():
                for edit in EDITS.values():
                    judge.render(avatar.identity, edit.applied(avatar).attributes)
    monkeypatch.setattr(module, "load_judge", lambda folder, device=None: judge)
    monkeypatch.setattr(module, "learn_cards", learn)
    monkeypatch.setattr(EditRendererSpec, "build", lambda self: fake)
    return fake


EDITED = ["happy", "red-clothes"]


def run(base: Path, **more: Any) -> dict[str, Any]:
    return evaluate_edits(base, **{"edits": EDITED, "images": IMAGES, "how": HOW, "workers": 1, **more})


def test_methods_get_the_expected_scores(base: Path, renderer: FakeEditRenderer, capsys: pytest.CaptureFixture[str]):
    results = run(base)
    for source in ("seeds", "renders"):
        methods = results["sources"][source]
        assert list(methods) == ["original", *METHODS]
        for name in (ONE, EIGHT):
            assert [methods[name]["mean"][metric]["mean"] for metric in ("change", "kept", "both")] == [1, 1, 1]
        assert methods[STYLED]["mean"]["change"]["mean"] == 1
        assert methods[STYLED]["mean"]["kept"]["mean"] < 0.9
        assert methods[SWITCH]["mean"]["change"]["mean"] == 0
        assert list(methods[LEDITS]["edits"]) == ["happy"]
        assert 0 < methods[EIGHT]["edits"]["happy"]["asked"] < 9
        assert methods[EIGHT]["edits"]["happy"]["fields"]["hair"] == {"mean": 1, "low": 1, "high": 1}
        assert methods[EIGHT]["stays"]["expression"]["mean"] == 1
        hair = methods[STYLED]["stays"]["hair"]
        assert 0 <= hair["low"] <= hair["mean"] <= hair["high"] < 1
    renders = results["sources"]["renders"]
    assert renders[EIGHT]["mean"]["distance"]["mean"] < 1e-6 < renders[SWITCH]["mean"]["distance"]["mean"]
    assert "distance" not in results["sources"]["seeds"][EIGHT]["mean"]
    assert list(results["sources"]["subjects"]) == ["original", EIGHT]
    checks = results["claims"]
    assert checks["identity-stays"]["holds"]
    # Learning on one seed scores the same here, so several seeds are not better.
    assert not checks["best-on-seeds"]["holds"]
    assert checks["best-on-seeds"]["apart"][SWITCH]
    assert not checks["best-on-seeds"]["apart"][ONE]
    out = capsys.readouterr().out
    assert "U-Net items" in out
    assert "edits of renders" in out
    assert "how often each field stays" in out
    settings = results["settings"]
    assert set(settings["base"]) == {"base", "promptnet"}
    assert settings["judge"]["name"] == "test"
    assert settings["learning_s"] == {}


def test_results_are_saved_and_no_image_is_generated_twice(base: Path, renderer: FakeEditRenderer, tmp_path: Path):
    out, cards = tmp_path / "out", tmp_path / "ready"
    for folder in (out, cards):
        folder.mkdir()
    results = run(base, out=out, cards=cards)
    assert json.loads((out / "results.json").read_text()) == results
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    assert sorted(path.name for path in cards.iterdir()) == ["happy.safetensors", "red-clothes.safetensors"]
    happy = EditCard.load(cards / "happy.safetensors")
    assert happy.weights.tolist() == pytest.approx([0.2] * 4)
    asked = results["sources"]["renders"][EIGHT]["edits"]["happy"]["asked"]
    perfect = {"images": asked, "change": 1, "kept": 1, "person": 1, "unedited": 1}
    assert happy.measured["renders"] == perfect
    assert set(happy.measured) == {"seeds", "renders", "subjects"}
    generated = len(renderer.generated)
    assert run(base, out=out) == results
    assert len(renderer.generated) == generated
    assert run(base, out=out, methods=[EIGHT])["sources"]["seeds"][EIGHT] == results["sources"]["seeds"][EIGHT]
    assert len(renderer.generated) == generated


def test_shipped_cards_are_scored_without_learning_and_keep_all_figures(
    base: Path, renderer: FakeEditRenderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cards = tmp_path / "ready"
    learned = run(base, cards=cards)
    monkeypatch.setattr(module, "learn_cards", lambda tasks, workers: [] if not tasks else pytest.fail("learned"))
    where: dict[str, Any] = {"world": "style", "frame": "shift", "images": Images(0, 0, 3)}
    again = run(base, learned=cards, cards=cards, methods=[EIGHT, STYLED], **where)["settings"]
    assert again["weights"].keys() == {f"{name}/{edit}" for name in (STYLED, SWITCH, EIGHT) for edit in EDITED}
    assert (learned["settings"]["world"], learned["settings"]["frame"]) == ("known", "plain")
    assert (again["world"], again["frame"]) == ("style", "shift")
    found = EditCard.load(cards / "happy.safetensors")
    assert set(found.measured) == {"seeds", "renders", "subjects", "subjects, style, shift"}
    found.scaled(2).save(cards / "happy.safetensors")  # other weights: nothing measured before holds for them
    card = EditCard.load(cards / "red-clothes.safetensors")
    assert measured_before(card, cards / "happy.safetensors") == {}
    assert measured_before(replace(card, measured={}), cards / "red-clothes.safetensors") == card.measured


@pytest.mark.parametrize(
    ("field", "value"), [("styled", "a sad portrait of a person"), ("scheduler", "Other"), ("guidance_scale", 7.5)]
)
def test_a_card_of_another_edit_or_setting_is_not_scored(tmp_path: Path, field: str, value: Any):
    happy = EDITS["happy"]
    card = EditCard(torch.zeros(4), NEUTRAL, happy.styled, "DDIMScheduler", 3.0, {})
    card.save(tmp_path / "happy.safetensors")
    assert set(given_cards(tmp_path, [happy], HOW)) == {"happy"}
    with pytest.raises(ValueError, match="has steps=4, not 5"):
        given_cards(tmp_path, [happy], replace(HOW, num_steps=5))
    replace(card, **{field: value}).save(tmp_path / "happy.safetensors")
    with pytest.raises(ValueError, match=f"has {field}="):
        given_cards(tmp_path, [happy], HOW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edits": ["beard"]}, "no edit 'beard'"),
        ({"methods": ["fast"]}, "no method 'fast'"),
        ({"split": "train"}, "split='train'"),
        ({"images": replace(IMAGES, renders=-1)}, "renders=-1"),
        ({"world": "mars"}, "world='mars'"),
        ({"frame": "round"}, "frame='round'"),
        ({"learned": "missing"}, "'missing/happy.safetensors' cannot be used: it does not exist"),
        ({"out": "missing/deeper"}, "'missing' does not exist"),
        ({"cards": "missing/deeper"}, "'missing' does not exist"),
        ({"how": replace(HOW, num_steps=0)}, "steps=0"),
        ({"how": replace(HOW, scheduler="HeunDiscreteScheduler")}, "scheduler='HeunDiscreteScheduler' must be one of"),
    ],
)
def test_invalid_arguments_raise_before_learning(
    base: Path, renderer: FakeEditRenderer, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
):
    monkeypatch.setattr(module, "learn_cards", lambda *_: pytest.fail("learned"))
    with pytest.raises(ValueError, match=message):
        evaluate_edits(base, **{"images": IMAGES, "how": HOW, "workers": 1, **options})


# --- cards and methods --------------------------------------------------------------------------------------------


def test_a_cards_name_depends_on_everything_that_decides_it(tmp_path: Path):
    edit = EDITS["happy"]
    first = card_path(tmp_path, ["base"], edit, 8, HOW)
    assert first == card_path(tmp_path, ["base"], edit, 8, HOW)
    judged = replace(HOW, teacher="judge")
    others = [
        card_path(tmp_path, ["other"], edit, 8, HOW),
        card_path(tmp_path, ["base"], EDITS["sad"], 8, HOW),
        card_path(tmp_path, ["base"], edit, 1, HOW),
        card_path(tmp_path, ["base"], edit, 8, replace(HOW, preserve=0.1)),
        card_path(tmp_path, ["base", "judge"], edit, 8, judged),
        card_path(tmp_path, ["base", "other"], edit, 8, judged),
        card_path(tmp_path, ["base", "judge"], replace(edit, value="sad"), 8, judged),
    ]
    assert len({first, *others}) == 8


def test_names_of_cards_and_images_are_stable(tmp_path: Path):
    """Images are found again; another scheduler has names of its own."""
    edit, how = EDITS["happy"], Learning(iterations=20, learning_rate=0.05, teacher="clip")
    assert card_path(tmp_path, ["base"], edit, 8, how).name == "happy.8-seeds.866b569f8b75.safetensors"
    assert (
        card_path(tmp_path, ["base"], edit, 8, replace(how, scheduler="PNDMScheduler")).name[:14] != "happy.8-seeds.8"
    )
    image_cache = ImageCache(tmp_path / "pictures", {"base": "base", "promptnet": "one"}, 25, 64)
    card = EditCard(torch.tensor([1.0, 0.5]), NEUTRAL, edit.styled, "DDIMScheduler", 3.0, {})
    edit_methods = (
        EditMethod("original", "original", guidance_scale=3.0),
        EditMethod(EIGHT, "card", edit, card),
        EditMethod(LEDITS, "ledits", edit, guidance_scale=3.0),
    )
    others = [replace(edit_method, scheduler="PNDMScheduler") for edit_method in edit_methods]
    others[1] = replace(edit_methods[1], card=replace(card, scheduler="PNDMScheduler"))
    names: dict[Any, list[str]] = {
        "seeds": ["b3bae6a5c7f20c02e0b7", "cc4c8d46b372ae503777", "39182d9245e807917ebf"],
        "renders": ["f4538ad1876bc2eeca23", "701924d69126b2ded864", "1bc055d26a32acb23d64"],
    }
    for source, expected in names.items():
        (group,) = make_groups(source, "test", 2)
        assert [
            image_cache.path(group, as_cached(source, edit_method)).stem for edit_method in edit_methods
        ] == expected
        assert not {image_cache.path(group, edit_method).stem for edit_method in others} & {*expected}
    # Images of subjects depend on the encoder too.
    (group,) = make_groups("subjects", "test", 2)
    again = replace(image_cache, weights={**image_cache.weights, "promptnet": "two"})
    paths = {
        each.path(group, as_cached("subjects", edit_method))
        for each in (image_cache, again)
        for edit_method in edit_methods
    }
    assert len(paths) == 6


def test_methods_without_learned_weights():
    assert fixed_weights(STYLED, 5).tolist() == [0] * 5
    assert fixed_weights(SWITCH, 25).tolist() == [1] * 10 + [0] * 15


def test_methods_differ_by_what_decides_their_images():
    card = EditCard(torch.zeros(3), NEUTRAL, "a happy portrait of a person", "DDIMScheduler", 3.0, {})
    edit_method = EditMethod(EIGHT, "card", EDITS["happy"], card)
    records = [
        edit_method.record(),
        replace(edit_method, card=card.scaled(0.5)).record(),
        replace(edit_method, correction_end=0.5).record(),
    ]
    records += [replace(edit_method, kind="ledits", card=None).record(), EditMethod("original", "original").record()]
    assert len({json.dumps(record, sort_keys=True) for record in records}) == 5
    assert replace(edit_method, name="another").record() == edit_method.record()


def test_the_estimate_grows_with_the_work():
    edits = chosen_edits(None)
    whole = estimate(len(edits), METHODS, Images(), Learning(iterations=20), 2)
    assert whole.endswith("minutes in 2 processes at 17 ms an item")
    # Methods that learn nothing have cards too, made from the one learned on eight seeds.
    none = Images(seeds=0, renders=0)
    learning = [
        estimate(1, methods, none, Learning(iterations=20), 1).split()[0]
        for methods in ((STYLED,), (STYLED, EIGHT), METHODS)
    ]
    assert learning[0] == learning[1] == str(int(8 * 2 * 25 * 20 * 3.5))
    assert int(learning[2]) == int(learning[0]) * 9 / 8
    assert int(whole.split()[0]) > 2 * int(
        estimate(len(edits), (STYLED, EIGHT), Images(), Learning(iterations=5), 2).split()[0]
    )


def test_shipped_cards_do_not_change_what_the_base_model_is(base: Path):
    before = weight_hashes(base, [])
    (base / "edits").mkdir()
    (base / "edits" / "happy.safetensors").write_bytes(b"card")
    assert weight_hashes(base, []) == before
    (base / "unet" / "weights.safetensors").write_bytes(b"other")
    assert weight_hashes(base, []) != before


# --- the real thing -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of random weights that edits can be learned in, with a validation judge."""
    place = tmp_path_factory.mktemp("random")
    folder = build_edit_base(place / "base")
    judge = AvatarJudge({name: list(values) for name, values in FIELDS.items()}, width=8)
    judge.save_pretrained(str(place / "judges" / "validation"))
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index |= {"tuning": {"steps": 1, "num_views": 1, "batch_size": 1}}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


@pytest.mark.parametrize(("scheduler", "teacher"), [("DDIMScheduler", "judge"), ("PNDMScheduler", "clip")])
def test_cards_are_learned_and_images_generated_for_real(
    random_base: Path, tmp_path: Path, scheduler: str, teacher: Teacher
):
    how = Learning(num_steps=3, iterations=1, batch_size=2, scheduler=scheduler, teacher=teacher)
    spec = EditRendererSpec(random_base, 3, guidance_scale=how.guidance_scale, scheduler=scheduler)
    tasks = card_tasks(spec, [EDITS["happy"]], [EIGHT], 2, how, tmp_path)
    cards = all_cards(tasks, workers=1)
    card = cards[EIGHT, "happy"]
    assert (card.scheduler, card.num_steps) == (scheduler, 3)
    assert (card.weights - torch.tensor([1.0, 0, 0])).abs().min() > 1e-3
    names = [part.name for part in loss_parts(tasks[EIGHT, "happy"])]
    assert names == ["perceptual", "direction", *(["shown", "kept"] if teacher == "judge" else [])]
    assert cards[STYLED, "happy"].weights.tolist() == [0, 0, 0]
    (seconds,) = seconds_record(tasks).values()
    assert seconds > 0

    renderer = spec.build()
    for source in ("seeds", "renders", "subjects") if scheduler == DDIM else ("seeds", "renders"):
        (group,) = make_groups(source, "test", 1)
        generated = []
        for edit_method in (EditMethod("original", "original"), EditMethod(EIGHT, "card", EDITS["happy"], card)):
            images = renderer(group, edit_method)
            assert [image.size for image in images] == [(64, 64)]
            generated.append(b"".join(image.tobytes() for image in images))
        assert generated[0] != generated[1]


def test_ledits_runs_on_the_base_model(random_base: Path):
    (group,) = make_groups("seeds", "test", 2)
    spec = EditRendererSpec(random_base, 2)
    images = spec.build()(group, EditMethod(LEDITS, "ledits", EDITS["happy"], guidance_scale=3.0))
    assert [image.size for image in images] == [(64, 64)] * 2


def test_an_unknown_teacher_raises():
    with pytest.raises(ValueError, match="teacher='test' must be one of judge, clip"):
        Learning(teacher="test")  # pyright: ignore[reportArgumentType]
