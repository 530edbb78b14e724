"""Plot identity against attributes: every method with its intervals, and the trade-off curves of the parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptnet.evaluation.subjects.results import Results
from promptnet.io.atomic import write_whole


def check_matplotlib() -> None:
    """Check for matplotlib before hours of sampling.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. Plots need the extra: pip install 'promptnet[eval]'") from error


def save_plot(results: Results, path: Path) -> None:
    """Plot `results` to a PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6), layout="constrained")
    everything, near = figure.subplots(1, 2)
    for axes in (everything, near):
        _plot_methods(axes, results["rows"])
        for curve in results["curves"].values():
            _plot_curve(axes, curve)
        axes.set(xlabel="attributes (0 guessing, 1 all right)", ylabel="identity (0 guessing, 1 all right)")
        axes.grid(alpha=0.3)
    everything.set_title("all methods")
    near.set_title("methods with identity above guessing")
    near.set(**_limits(results))
    figure.legend(*everything.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    write_whole(path, lambda part: figure.savefig(part, dpi=150), public=True)


def _limits(results: Results) -> dict[str, tuple[float, float]]:
    """Return the second panel's limits: around the means of all whose identity is better than a guess."""
    points = [*results["rows"].values(), *(p for curve in results["curves"].values() for p in curve["points"])]
    shown = [point for point in points if point["identity"]["mean"] > 0] or points
    limits = {}
    for axis, figure in (("xlim", "attributes"), ("ylim", "identity")):
        means = [point[figure]["mean"] for point in shown]
        limits[axis] = min(means) - 0.02, max(means) + 0.02
    return limits


def _plot_methods(axes: Any, methods: dict[str, Any]) -> None:
    from matplotlib import colormaps

    colors = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for index, (name, method) in enumerate(methods.items()):
        x, y = method["attributes"], method["identity"]
        scorer = {"best": "*", "ceiling": "^"}.get(name, "s" if name.startswith("published") else "o")
        arms = {"xerr": _arms(x), "yerr": _arms(y), "elinewidth": 0.8, "capsize": 2}
        axes.errorbar(x["mean"], y["mean"], **arms, fmt=scorer, ms=8, color=colors[index % len(colors)], label=name)


def _arms(figure: dict[str, float]) -> Sequence[Sequence[float]]:
    return [[figure["mean"] - figure["low"]], [figure["high"] - figure["mean"]]]


def _plot_curve(axes: Any, curve: dict[str, Any]) -> None:
    points = curve["points"]
    x = [point["attributes"]["mean"] for point in points]
    y = [point["identity"]["mean"] for point in points]
    style = "--" if curve["row"].startswith("published") else "-"
    axes.plot(x, y, style, marker=".", lw=1, label=f"{curve['knob']} of {curve['row']}")
    for point, *place in zip(points, x, y, strict=True):
        axes.annotate(f"{point['value']:g}", place, fontsize=6, xytext=(2, 2), textcoords="offset points")
