from pathlib import Path

import pytest
import yaml

from promptnet.evaluation.harness.methods import METHODS
from promptnet.evaluation.harness.settings import Settings, load_settings, save_settings


def test_the_shipped_settings_make_every_method():
    methods = load_settings().all_methods()
    assert [method.name for method in methods] == list(METHODS)
    for method in methods:
        assert all(method.config[parameter] > 0 for parameter in METHODS[method.name].positive)


def test_settings_come_back_as_written(tmp_path: Path):
    settings = Settings({"people": 4}, {"promptnet": {"steps": 50}}, {"plain-guidance": {"subject_scale": 2.5}})
    save_settings(settings, tmp_path / "settings.yaml")
    assert load_settings(tmp_path / "settings.yaml") == settings
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_methods_are_returned_in_order_and_once():
    names = ["ceiling", "prompt-only", "ceiling"]
    assert [method.name for method in load_settings().all_methods(names)] == ["prompt-only", "ceiling"]


@pytest.mark.parametrize(("names", "message"), [([], "methods is empty"), (["profusion", "fast"], "no method 'fast'")])
def test_unknown_methods_raise(names, message):
    with pytest.raises(ValueError, match=message):
        load_settings().all_methods(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is not YAML"),
        ("rows: {}", "has to hold chosen, customize and methods"),
        (yaml.safe_dump({"chosen": {}, "customize": {"mine": {}}, "methods": {}}), "customises 'mine'"),
        (yaml.safe_dump({"chosen": {}, "customize": {}, "methods": {"fast": {}}}), "no method 'fast'"),
        (yaml.safe_dump({"chosen": {}, "customize": {}, "methods": {"profusion": {"spped": 1}}}), "not choose 'spped'"),
        (yaml.safe_dump({"chosen": {}, "customize": {"promptnet": {"stepz": 3}}, "methods": {}}), "parameter stepz"),
        (
            yaml.safe_dump({"chosen": {}, "customize": {"promptnet": {"steps": "x"}}, "methods": {}}),
            "customize: promptnet",
        ),
        (
            yaml.safe_dump({"chosen": {}, "customize": {"promptnet": None}, "methods": {}}),
            "customize: promptnet has to",
        ),
        (yaml.safe_dump({"chosen": {}, "customize": {}, "methods": None}), "methods has to hold names"),
        (yaml.safe_dump({"chosen": {}, "customize": {}, "methods": {"best": 3}}), "methods: best has to hold names"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_what_is_not_settings_raises(tmp_path: Path, content, message):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_settings(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no settings file at .*nothing\.yaml"):
        load_settings(tmp_path / "nothing.yaml")
