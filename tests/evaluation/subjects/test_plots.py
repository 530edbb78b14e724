import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptnet.evaluation.subjects import plots
from promptnet.evaluation.subjects.results import method_intervals, summarise
from promptnet.evaluation.subjects.score import METRICS, MethodScores

SCORES = MethodScores({metric: np.array([0.4, 0.6]) for metric in METRICS}, {})


def test_the_plot_holds_methods_and_curves(tmp_path: Path):
    points = [{"value": value, **method_intervals(SCORES)} for value in (0, 1)]
    curves = {"profusion/fusion_steps": {"row": "profusion", "knob": "fusion_steps", "points": points}}
    results = summarise({"best": SCORES, "published-profusion": SCORES}, {}, curves, {})
    plots.save_plot(results, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 500


def test_methods_and_curves_are_plotted_at_their_values():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    plots._plot_methods(axes, {"best": method_intervals(SCORES), "ceiling": method_intervals(SCORES)})
    points = [{"value": value, "attributes": {"mean": value}, "identity": {"mean": 1 - value}} for value in (0.2, 0.6)]
    plots._plot_curve(axes, {"row": "profusion", "knob": "class_scale", "points": points})
    labels = axes.get_legend_handles_labels()[1]
    assert sorted(labels) == ["best", "ceiling", "class_scale of profusion"]
    curve = next(line for line in axes.get_lines() if line.get_label() == "class_scale of profusion")
    np.testing.assert_allclose(np.asarray(curve.get_xydata()), [[0.2, 0.8], [0.6, 0.4]])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"promptnet\[eval\]"):
        plots.check_matplotlib()
