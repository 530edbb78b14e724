"""Pipelines x what people put beside x what this package adds: the right value, or an error that names the thing.

Right values are made by hand: states between two prompts for an edit, dilated convolutions and scaled keys for a size,
the other pipeline for a subject; with adapters merged, networks uncompiled and not offloaded, in float32.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.composition import pipelines
from tests.composition.companions import COMPANIONS, sibling, with_companion
from tests.composition.features import (
    edited,
    edited_by_hand,
    for_these_weights,
    new_subject,
    plain,
    sized,
    sized_by_hand,
    with_subject,
)
from tests.composition.pipelines import FAMILIES, KINDS, build

FEATURES: dict[str, Any] = {"edit": (edited, edited_by_hand), "size": (sized, sized_by_hand)}
# What make test runs; the rest is for make test-slow.
QUICK = {
    ("ours", "sd"): ("LoHa", "IP-Adapter", "sequential offload"),
    ("ours", "sdxl"): ("LoRA",),
    ("text2img", "sd"): ("LoHa", "from_pipe"),
    ("text2img", "sdxl"): ("IP-Adapter",),
    ("img2img", "sdxl"): ("FreeU",),
    ("controlnet", "sd"): ("IP-Adapter",),
}


def cells(*names: str) -> list[Any]:
    """Every pipeline with every companion."""
    found = [(kind, family, name) for kind in KINDS for family in FAMILIES for name in names or COMPANIONS]
    return [pytest.param(*cell, marks=() if cell[2] in QUICK.get(cell[:2], ()) else pytest.mark.slow) for cell in found]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return pipelines.bases(tmp_path_factory.mktemp("bases"))


def distance(found: Tensor, right: Tensor) -> float:
    """Mean difference, as a share of what is right."""
    assert found.isfinite().all()
    return float((found.float() - right.float()).abs().mean() / right.float().abs().mean())


def refusal(kind: str, name: str, feature: str) -> str | None:
    """Return what the error says of combinations that are not supported."""
    if kind == "ours" and name == "IP-Adapter":
        return "IP-Adapter"
    if name == "LoHa" and feature == "size":
        return r"conv1 has an adapter that convolves by itself"
    return None


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize(("kind", "family", "name"), cells())
def test_edits_and_sizes(kind: str, family: str, name: str, feature: str, ours: dict[str, Any]) -> None:
    added, by_hand = FEATURES[feature]
    companion = COMPANIONS[name]
    pipe, right = with_companion(ours[family], kind, family, name)
    options = {"output_type": companion.output_type}
    refused = refusal(kind, name, feature)
    if refused is not None:
        with pytest.raises((ValueError, RuntimeError), match=refused):
            added(pipe, ours[family], **options)
        return
    before = plain(pipe, **options)
    found = added(pipe, ours[family], **options)
    assert distance(found, by_hand(right, **options)) <= companion.tolerance
    assert distance(found, before) > 1e-4
    assert torch.equal(plain(pipe, **options), before)
    if companion.acts:
        without = build(ours[family], kind, family)
        assert distance(found, added(without, ours[family], **options)) > 10 * companion.tolerance


@pytest.mark.parametrize(("kind", "family", "name"), cells())
def test_subjects(kind: str, family: str, name: str, ours: dict[str, Any]) -> None:
    """Ours against diffusers' own loop, each with the companion that the other has merged or not at all."""
    encoder, subject = ours[family].promptnet, new_subject(ours[family])
    pipe, _ = with_companion(ours[family], kind, family, name)
    if kind not in ("ours", "text2img"):
        with pytest.raises(ValueError, match=f"not exact in {type(pipe).__name__}"):
            with_subject(pipe, subject, encoder)
        return
    refused = refusal(kind, name, "subject")
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            with_subject(pipe, subject, encoder)
        return
    companion = COMPANIONS[name]
    other = "ours" if kind == "text2img" and name != "IP-Adapter" else "text2img"
    _, right = with_companion(ours[family], other, family, name)
    found = with_subject(pipe, subject, copy.deepcopy(encoder).to(pipe.unet.dtype))
    by_hand = with_subject(right, for_these_weights(subject, right), encoder)
    assert distance(found, by_hand) <= companion.tolerance
    if companion.acts:
        without = with_subject(build(ours[family], kind, family), subject, encoder)
        assert distance(found, without) > 10 * companion.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ours"])
def test_threads(kind: str, family: str, ours: dict[str, Any]) -> None:
    """Pipelines that share networks, each in a thread with something else: as each alone."""
    first = build(ours[family], kind, family)
    pipes = [sibling(first) for _ in range(3)]
    others = [build_ours_of(first, ours[family]), *pipes]
    calls: list[Callable[[], Tensor]] = [
        lambda: edited(others[0], ours[family]),
        lambda: edited(pipes[0], ours[family], seed=1),
        lambda: plain(pipes[1], seed=2),
        lambda: sized(others[0], seed=3),
        lambda: plain(pipes[2], seed=4),
    ]
    alone = [call() for call in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(2):
            found = [future.result() for future in [pool.submit(call) for call in calls]]
            assert [torch.equal(one, right) for one, right in zip(found, alone, strict=True)] == [True] * len(calls)


def build_ours_of(stock: Any, ours: Any) -> Any:
    """Build our pipeline of a stock pipeline's networks."""
    shared = {name: part for name, part in stock.components.items() if name in ours.components and part is not None}
    return pipelines.quiet(type(ours)(**{**ours.components, **shared}))


@pytest.mark.parametrize("kind", ["text2img", "img2img", "inpaint"])
@pytest.mark.parametrize("family", [pytest.param("sd", marks=pytest.mark.slow), "sdxl"])
@pytest.mark.parametrize("feature", FEATURES)
def test_controlnets(kind: str, family: str, feature: str, ours: dict[str, Any]) -> None:
    added, by_hand = FEATURES[feature]
    pipe, right = (build(ours[family], kind, family, controlled=True) for _ in range(2))
    found = added(pipe, ours[family])
    assert distance(found, by_hand(right)) <= 1e-4
    assert distance(found, added(build(ours[family], kind, family), ours[family])) > 1e-3


def test_ours_takes_no_controlnet(ours: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="control_image"):
        plain(ours["sd"], control_image=None)
    with pytest.raises(TypeError, match="ip_adapter_image"):
        plain(ours["sd"], ip_adapter_image=None)
