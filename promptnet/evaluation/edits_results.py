"""The outcome of the evaluation of edits as plain data: what its results.json holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from promptnet.evaluation.edits_marking import METRICS, EditScores, averaged, difference
from promptnet.evaluation.edits_ways import EIGHT, ORIGINAL
from promptnet.evaluation.results import Claim

Scores = Mapping[str, Mapping[str, Mapping[str, EditScores]]]
"""Source to row to edit. The unedited pictures are the row "original" with the one edit ""."""

IDENTITY_LOSS = 0.05


def summarise_edits(scores: Scores, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals of every row and edit, the fields, the claims."""
    return {
        "sources": {source: _source_record(rows) for source, rows in scores.items()},
        "claims": {name: claim.record() for name, claim in claims(scores).items()},
        "settings": dict(settings),
    }


def _source_record(rows: Mapping[str, Mapping[str, EditScores]]) -> dict[str, Any]:
    return {
        row: {
            "mean": {name: averaged(list(edits.values()), name).record() for name in metrics_of(edits)},
            "edits": {
                edit: {
                    "asked": int(one.asked.sum()),
                    **{name: one.interval(name).record() for name in metrics_of(edits)},
                    "fields": {field: float(one.mean(hits, _all(one))[0]) for field, hits in one.fields.items()},
                }
                for edit, one in edits.items()
            },
        }
        for row, edits in rows.items()
    }


def metrics_of(edits: Mapping[str, EditScores]) -> list[str]:
    """The metrics that a row's scores have."""
    known = set.intersection(*({*one.values} for one in edits.values()))
    return [name for name in METRICS if name in known or (name == "both" and {"change", "kept"} <= known)]


def _all(one: EditScores) -> Any:
    return np.arange(len(one.asked))[None]


def claims(scores: Scores) -> dict[str, Claim]:
    """The claims whose rows were drawn."""
    found = {}
    for source in ("seeds", "renders"):
        rows = scores.get(source, {})
        if EIGHT in rows and len(rows) > 1:
            found[f"best-on-{source}"] = _best(source, rows)
    subjects = scores.get("subjects", {})
    if EIGHT in subjects and ORIGINAL in subjects:
        found["identity-stays"] = _identity(subjects)
    return found


def _best(source: str, rows: Mapping[str, Mapping[str, EditScores]]) -> Claim:
    """Against each other row on the edits that both have."""
    ours, behind, beaten = rows[EIGHT], {}, []
    for row, edits in rows.items():
        shared = [name for name in edits if name in ours]
        if row in (EIGHT, ORIGINAL) or not shared:
            continue
        both = [ours[name] for name in shared], [edits[name] for name in shared]
        behind[f"{EIGHT} minus {row}"] = difference(*both, "both")
        for name in shared:
            if edits[name].metric("both", _all(edits[name]))[0] > ours[name].metric("both", _all(ours[name]))[0]:
                beaten.append(f"{name} ({row})")
    where = f"; not on {', '.join(beaten)}" if beaten else ""
    statement = f"{EIGHT} has the best harmonic mean of change and preservation on {source}, on average{where}"
    return Claim(statement, all(figure.mean > 0 for figure in behind.values()), behind)


def _identity(rows: Mapping[str, Mapping[str, EditScores]]) -> Claim:
    """Over all pictures of subjects, asked or not: nobody is to become another."""
    before, edited = rows[ORIGINAL][""].values["identity"], [one.values["identity"] for one in rows[EIGHT].values()]
    from promptnet.evaluation.bootstrap import difference as paired

    change = paired(np.mean(edited, axis=0), before)
    statement = f"a subject edited by a card learned without it keeps its identity within {IDENTITY_LOSS}"
    return Claim(statement, change.mean >= -IDENTITY_LOSS, {"edited minus unedited": change})
