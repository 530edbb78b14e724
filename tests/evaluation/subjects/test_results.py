import json

import numpy as np
import pytest

from promptnet.evaluation.subjects.results import checks, save_results, summarise
from promptnet.evaluation.subjects.score import METRICS, MethodScores

EXACT = {"methods": {}, "differences": {}}
SETTINGS = {"split": "test", "people": 20, "prompts": 4, "steps": 20}


def method(harmonic: float, spread: float = 0.05, **metrics: float) -> MethodScores:
    """Return scores of twenty people, half of them `spread` above and half below each mean."""
    signs = np.resize([1.0, -1.0], 20)
    means = {
        "identity": harmonic,
        "attributes": harmonic,
        "preservation": 0.5,
        "distance": 0.2,
        "pixel_l1": 0.1,
        **metrics,
    }
    return MethodScores({name: value + spread * signs for name, value in {**means, "harmonic": harmonic}.items()}, {})


def test_every_method_has_every_metric_with_an_interval():
    results = summarise({"profusion": method(0.6), "ceiling": method(1.0, 0.0)}, SETTINGS, {}, EXACT)
    assert set(results["rows"]) == {"profusion", "ceiling"}
    for record in results["rows"].values():
        assert set(record) == set(METRICS)
        for figure in record.values():
            assert set(figure) == {"mean", "low", "high"}
            assert figure["low"] <= figure["mean"] <= figure["high"]
    assert results["rows"]["profusion"]["harmonic"]["mean"] == pytest.approx(0.6)
    assert results["rows"]["ceiling"]["identity"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert len(results["people"]["profusion"]["harmonic"]) == 20


def test_results_are_written_as_json(tmp_path):
    results = summarise({"profusion": method(0.6)}, SETTINGS, {}, EXACT)
    save_results(results, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_checks_need_their_methods():
    assert checks({"profusion": method(0.5)}) == {}
    assert set(checks({"best": method(0.5), "profusion": method(0.5)})) == {"best-is-best"}


@pytest.mark.parametrize(("plain", "holds"), [(0.4, True), (0.58, False), (0.7, False)])
def test_fusion_pays_only_with_intervals_apart(plain, holds):
    found = checks({"published-profusion": method(0.6), "published-plain-guidance-tuned": method(plain)})["fusion-pays"]
    assert found["holds"] is holds
    assert found["figures"]["paired difference"]["mean"] == pytest.approx(0.6 - plain)


def test_best_is_best_unless_one_of_ours_is_above():
    methods = {"best": method(0.6), "profusion": method(0.6), "published-profusion": method(0.9)}
    assert checks(methods)["best-is-best"]["holds"] is True
    assert checks({**methods, "fusion-only": method(0.61)})["best-is-best"]["holds"] is False
    assert checks(methods)["beyond-published"]["holds"] is False


@pytest.mark.parametrize(("identity", "attributes", "holds"), [(0.9, 0.86, True), (0.9, 0.8, False), (0.8, 0.9, False)])
def test_the_ceiling_has_to_be_near_on_both(identity, attributes, holds):
    best = method(0.85, identity=identity, attributes=attributes)
    found = checks({"best": best, "ceiling": method(1.0, 0.0)})["near-the-ceiling"]
    assert found["holds"] is holds
    assert found["figures"]["identity"]["mean"] == pytest.approx(identity)


def test_no_check_holds_if_the_judge_cannot_predict_the_ceiling():
    found = checks({"best": method(0.9), "ceiling": method(0.0)})["near-the-ceiling"]
    assert found["holds"] is False
    assert "cannot predict the ceiling" in found["statement"]


def test_errors_on_the_ceiling_do_not_count_against_best():
    best, ceiling = method(0.8, 0.0, identity=0.8, attributes=0.8), method(0.9, 0.0, identity=0.9, attributes=0.9)
    found = checks({"best": best, "ceiling": ceiling})["near-the-ceiling"]
    assert found["figures"]["attributes"]["mean"] == pytest.approx(8 / 9)
    assert found["holds"] is True
