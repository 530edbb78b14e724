"""Distances to what an encoder knows, against their definition, and its file."""

from pathlib import Path

import pytest
import torch

from promptnet.models.familiarity import FILE_NAME, Familiarity, FamiliarityError


def _states(num: int, seed: int = 0, width: int = 6) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=draws, dtype=torch.float64)
    return torch.randn(num, 5, width, generator=draws, dtype=torch.float64) @ mixing + 3


def test_a_distance_is_mahalanobis_over_the_root_of_the_width():
    states, others = _states(400), _states(3, seed=1)
    features = states.mean(1)
    covariance = torch.cov(features.T)
    covariance += 1e-3 * covariance.diag().mean() * torch.eye(6, dtype=torch.float64)
    away = others.mean(1) - features.mean(0)
    expected = ((away @ torch.linalg.inv(covariance)) * away).sum(1).div(6).sqrt()
    torch.testing.assert_close(Familiarity.fit(states).distances(others), expected)


def test_what_was_fitted_lies_at_about_one():
    assert float(Familiarity.fit(_states(2000)).distances(_states(2000)).mean()) == pytest.approx(1, abs=0.05)


def test_likeness_is_one_for_the_same_image_and_about_zero_for_others():
    states = _states(2000)
    known = Familiarity.fit(states)
    torch.testing.assert_close(known.likeness(states[:9], states[:9]), torch.ones(9, dtype=torch.float64))
    assert abs(float(known.likeness(states[::2], states[1::2]).mean())) < 0.05


def test_a_verdict_follows_both_limits():
    known = Familiarity(torch.zeros(2), torch.ones(2), torch.eye(2), doubtful=1.2, foreign=1.5, alike=0.3)
    assert [known.verdict(distance) for distance in (1.2, 1.3, 1.6)] == ["good", "doubtful", "foreign"]
    assert known.verdict(1.0, likeness=0.2) == "doubtful"
    assert known.verdict(1.0, likeness=0.4) == "good"
    unlimited = Familiarity(torch.zeros(2), torch.ones(2), torch.eye(2), doubtful=1.2)
    assert unlimited.verdict(99.0, likeness=-1.0) == "doubtful"


def test_a_file_gives_back_what_was_saved(tmp_path: Path):
    known = Familiarity(*map(torch.clone, (torch.ones(2), torch.ones(2), torch.eye(2))), doubtful=1.2, foreign=1.5)
    known.save(tmp_path)
    read = Familiarity.load(tmp_path / FILE_NAME)
    assert (read.doubtful, read.foreign, read.alike) == (1.2, 1.5, None)
    assert torch.equal(read.directions, known.directions)


def test_a_damaged_file_is_refused(tmp_path: Path):
    (tmp_path / FILE_NAME).write_bytes(b"no file of ours")
    with pytest.raises(FamiliarityError, match="safetensors"):
        Familiarity.load(tmp_path / FILE_NAME)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"variances": torch.ones(3)}, r"\(V,\)"),
        ({"variances": torch.zeros(2)}, "wider than a point"),
        ({"mean": torch.full((2,), torch.nan)}, "finite"),
        ({"doubtful": 2.0, "foreign": 1.0}, "doubtful=2.0"),
    ],
)
def test_senseless_values_are_refused(changed: dict[str, object], message: str):
    plain = {"mean": torch.zeros(2), "variances": torch.ones(2), "directions": torch.eye(2)}
    with pytest.raises(FamiliarityError, match=message):
        Familiarity(**{**plain, **changed})  # type: ignore[arg-type]


def test_too_few_images_and_states_of_another_width_are_refused():
    with pytest.raises(FamiliarityError, match="1 images"):
        Familiarity.fit(_states(1))
    with pytest.raises(FamiliarityError, match="4 wide"):
        Familiarity.fit(_states(9)).distances(_states(1, width=4))
