from pathlib import Path

import pytest
import yaml

from promptnet.evaluation.harness.methods import ROWS
from promptnet.evaluation.harness.settings import Settings, load_settings, save_settings


def test_the_shipped_settings_make_every_row():
    rows = load_settings().all_rows()
    assert [row.name for row in rows] == list(ROWS)
    for row in rows:
        assert all(row.knobs[knob] > 0 for knob in ROWS[row.name].positive)


def test_settings_come_back_as_written(tmp_path: Path):
    settings = Settings({"people": 4}, {"promptnet": {"steps": 50}}, {"plain-guidance": {"subject_scale": 2.5}})
    save_settings(settings, tmp_path / "settings.yaml")
    assert load_settings(tmp_path / "settings.yaml") == settings
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_rows_are_given_in_order_and_once():
    names = ["ceiling", "prompt-only", "ceiling"]
    assert [row.name for row in load_settings().all_rows(names)] == ["prompt-only", "ceiling"]


@pytest.mark.parametrize(("names", "message"), [([], "rows is empty"), (["profusion", "fast"], "no row 'fast'")])
def test_rows_that_are_not_there_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        load_settings().all_rows(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is not YAML"),
        ("rows: {}", "has to hold chosen, customize and rows"),
        (yaml.safe_dump({"chosen": {}, "customize": {"mine": {}}, "rows": {}}), "customises 'mine'"),
        (yaml.safe_dump({"chosen": {}, "customize": {}, "rows": {"fast": {}}}), "no row 'fast'"),
        (yaml.safe_dump({"chosen": {}, "customize": {}, "rows": {"profusion": {"spped": 1}}}), "not choose 'spped'"),
        (yaml.safe_dump({"chosen": {}, "customize": {"promptnet": {"stepz": 3}}, "rows": {}}), "knob stepz"),
        (
            yaml.safe_dump({"chosen": {}, "customize": {"promptnet": {"steps": "x"}}, "rows": {}}),
            "customize: promptnet",
        ),
        (yaml.safe_dump({"chosen": {}, "customize": {"promptnet": None}, "rows": {}}), "customize: promptnet has to"),
        (yaml.safe_dump({"chosen": {}, "customize": {}, "rows": None}), "rows has to hold names"),
        (yaml.safe_dump({"chosen": {}, "customize": {}, "rows": {"best": 3}}), "rows: best has to hold names"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_what_is_not_settings_is_refused(tmp_path: Path, content, message):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_settings(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no settings file at .*nothing\.yaml"):
        load_settings(tmp_path / "nothing.yaml")
