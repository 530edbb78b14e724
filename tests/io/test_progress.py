"""One progress bar, wherever something can be counted."""

from pathlib import Path

import pytest

from promptnet.io.progress import counting_bar, measuring_bar, new_bar

PACKAGE = Path(__file__).parents[2] / "promptnet"


def test_there_is_one_bar() -> None:
    makers = {path.name for path in PACKAGE.rglob("*.py") if "rich.progress" in path.read_text("utf-8")}
    assert makers == {"progress.py"}
    assert not [path for path in PACKAGE.rglob("*.py") if "import tqdm" in path.read_text("utf-8")]


def test_it_counts_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with counting_bar("drawing", 3, "people", already=1) as advance:
        advance()
    with measuring_bar("preparing") as measure:
        measure(2, 5)
    said = capsys.readouterr()
    assert not said.out
    assert "drawing" in said.err
    assert "2/3 people" in said.err


def test_texts_stand_behind_the_numbers() -> None:
    bar = new_bar("loss {task.fields[loss]}")
    task = bar.add_task("step", total=None, loss="0.5")
    bar.update(task, completed=4)
    assert (bar.tasks[0].completed, bar.tasks[0].total) == (4, None)
    assert "loss {task.fields[loss]}" in [getattr(column, "text_format", "") for column in bar.columns]
