"""Results of the evaluation of edits as plain data: the content of results.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from promptnet.evaluation.edits.methods import EIGHT, ORIGINAL
from promptnet.evaluation.edits.score import METRICS, EditScores, averaged, difference
from promptnet.evaluation.edits.tasks import EDITS
from promptnet.evaluation.subjects.results import Check
from promptnet.metrics.bootstrap import Interval, of_statistic
from promptnet.metrics.bootstrap import difference as paired

Scores = Mapping[str, Mapping[str, Mapping[str, EditScores]]]
"""Source to method to edit. The unedited images are the method "original" with the edit ""."""

IDENTITY_LOSS = 0.05


def summarise_edits(scores: Scores, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the intervals of every method and edit, the fields, and the checks."""
    return {
        "sources": {source: _source_record(methods) for source, methods in scores.items()},
        "claims": {name: check.record() for name, check in checks(scores).items()},
        "settings": dict(settings),
    }


def _source_record(methods: Mapping[str, Mapping[str, EditScores]]) -> dict[str, Any]:
    return {
        method: {
            "mean": {name: averaged(list(edits.values()), name).record() for name in metrics_of(edits)},
            "stays": {field: stays.record() for field, stays in stays_rates(edits).items()},
            "edits": {
                edit: {
                    "asked": int(one.asked.sum()),
                    **{name: one.interval(name).record() for name in metrics_of(edits)},
                    "fields": {field: as_wanted([one], field).record() for field in one.fields},
                }
                for edit, one in edits.items()
            },
        }
        for method, edits in methods.items()
    }


def metrics_of(edits: Mapping[str, EditScores]) -> list[str]:
    """Return the metrics that a method's scores have."""
    known = set.intersection(*({*one.values} for one in edits.values()))
    return [name for name in METRICS if name in known or (name == "both" and {"change", "kept"} <= known)]


def stays_rates(edits: Mapping[str, EditScores]) -> dict[str, Interval]:
    """Return field to how often it is preserved, averaged over the edits of other fields."""
    found = {}
    for field in dict.fromkeys(field for one in edits.values() for field in one.fields):
        others = [one for name, one in edits.items() if name not in EDITS or EDITS[name].field != field]
        if others:
            found[field] = as_wanted(others, field)
    return found


def as_wanted(scores: Sequence[EditScores], field: str) -> Interval:
    """Return how often the judge predicts the wanted value, averaged over edits; images are resampled together."""
    return of_statistic(
        lambda places: np.mean([one.mean(one.fields[field], places) for one in scores], axis=0), len(scores[0].asked)
    )


def _all(one: EditScores) -> Any:
    return np.arange(len(one.asked))[None]


@dataclass(frozen=True)
class BestCheck(Check):
    """Check against rivals, with whether the intervals of the two methods are apart."""

    apart: Mapping[str, bool]

    def record(self) -> dict[str, Any]:
        """Return the check as `results.json` holds it."""
        return {**super().record(), "apart": dict(self.apart)}


def checks(scores: Scores) -> dict[str, Check]:
    """Return the checks of the methods that have images."""
    found: dict[str, Check] = {}
    for source in ("seeds", "renders"):
        methods = scores.get(source, {})
        if rivals := rivals_of(methods):
            found[f"best-on-{source}"] = _best(source, methods, rivals)
    subjects = scores.get("subjects", {})
    if EIGHT in subjects and ORIGINAL in subjects:
        found["identity-stays"] = _identity(subjects)
    return found


def rivals_of(methods: Mapping[str, Mapping[str, EditScores]]) -> dict[str, list[str]]:
    """Return the methods to compare ours with, and the edits that both have."""
    ours = methods.get(EIGHT, {})
    shared = {method: [name for name in edits if name in ours] for method, edits in methods.items()}
    return {method: names for method, names in shared.items() if names and method not in (EIGHT, ORIGINAL)}


def _best(
    source: str, methods: Mapping[str, Mapping[str, EditScores]], rivals: Mapping[str, Sequence[str]]
) -> BestCheck:
    """Compare ours with each other method on the edits that both have."""
    behind, beaten, apart = {}, [], {}
    for method, shared in rivals.items():
        ours, theirs = ([methods[name][edit] for edit in shared] for name in (EIGHT, method))
        behind[f"{EIGHT} minus {method}"] = difference(ours, theirs, "both")
        apart[method] = averaged(ours, "both").above(averaged(theirs, "both"))
        for edit, one, other in zip(shared, ours, theirs, strict=True):
            if other.metric("both", _all(other))[0] > one.metric("both", _all(one))[0]:
                beaten.append(f"{edit} ({method})")
    where = f"; not on {', '.join(beaten)}" if beaten else ""
    near = [method for method, is_apart in apart.items() if not is_apart]
    near = f"; intervals not apart from {', '.join(near)}" if near else ""
    statement = f"{EIGHT} has the best harmonic mean of change and preservation on {source}, on average{where}{near}"
    return BestCheck(statement, all(figure.mean > 0 for figure in behind.values()), behind, apart)


def _identity(methods: Mapping[str, Mapping[str, EditScores]]) -> Check:
    """Check all images of subjects, with and without the attribute: the identity must be preserved."""
    before = methods[ORIGINAL][""].values["identity"]
    edited = {name: one.values["identity"] for name, one in methods[EIGHT].items()}
    change = paired(np.mean(list(edited.values()), axis=0), before)
    changes = {name: paired(values, before) for name, values in edited.items()}
    worst = max(changes, key=lambda name: abs(changes[name].mean))
    statement = (
        f"a subject edited by a card learned without it keeps its identity within {IDENTITY_LOSS}, whatever the edit: "
        f"worst {worst}, {changes[worst].mean:+.3f}; on average {change.mean:+.3f}, at the low end {change.low:+.3f}"
    )
    figures = {"edited minus unedited": change, f"the same of {worst}": changes[worst]}
    return Check(statement, abs(changes[worst].mean) <= IDENTITY_LOSS, figures)
