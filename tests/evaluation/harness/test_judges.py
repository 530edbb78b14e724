"""Finding the judges of an evaluation."""

from pathlib import Path

import pytest

from promptnet.evaluation.harness.judges import judge_folder


def test_judges_lie_beside_the_base_model_by_split(base: Path):
    assert judge_folder(base, "test") == base.resolve().parent / "judges" / "test"
    assert judge_folder(base, "train") == judge_folder(base, "validation")
    assert judge_folder(base, "validation", base.parent / "judges" / "test") == base.parent / "judges" / "test"


def test_judges_in_the_base_models_own_folder_come_first(tmp_path: Path):
    for folder in (tmp_path / "judges" / "test", tmp_path / "people" / "judges" / "test"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert judge_folder(tmp_path / "people", "test") == (tmp_path / "people" / "judges" / "test").resolve()
    assert judge_folder(tmp_path / "tiny", "test") == (tmp_path / "judges" / "test").resolve()


def test_a_missing_judge_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no judge at .*judges.test"):
        judge_folder(tmp_path / "tiny", "test")
