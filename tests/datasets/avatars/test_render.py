"""What avatars look like, and what captions say of them in words."""

import random

import numpy as np
import pytest

from promptnet.datasets.avatars.captions import caption, sample_fields
from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, FIELDS, Attributes, Identity, sample_attributes
from promptnet.datasets.avatars.render import render
from promptnet.datasets.avatars.styles import STYLES

PLAIN = Attributes("happy", "none", "#ff9ccb", "t-shirt", "#d4232b")
SOMEONE = Identity("toon", "#f6d3b8", "long", "#d9541e", traits={p: v[0] for p, v in STYLES["toon"].traits.items()})


def test_rendering_at_another_size_shows_the_same_image():
    small, large = render(SOMEONE, PLAIN, 64), render(SOMEONE, PLAIN, 256)
    shrunk = np.asarray(large.resize((64, 64), box=(0, 0, 256, 256), reducing_gap=2.0), dtype=np.int16)
    assert large.size == (256, 256)
    assert np.abs(shrunk - np.asarray(small, dtype=np.int16)).mean() < 6


def test_a_black_beard_still_shows_the_mouth():
    traits = {part: variants[0] for part, variants in STYLES["micah"].traits.items()}
    who = Identity("micah", "#f6d3b8", next(iter(STYLES["micah"].hair)), "#1d1a22", "beard", traits=traits)
    sad, happy = (
        np.asarray(render(who, Attributes(mood, "none", "#ff9ccb", "t-shirt", "#d4232b"), 64), dtype=np.int16)
        for mood in ("sad", "happy")
    )
    assert (np.abs(sad - happy).max(axis=-1) > 60).sum() >= 12


def test_captions_of_a_subject_name_only_the_asked_fields():
    record = {**SOMEONE.record(), "expression": "sad", "glasses": "none", "background": "pink", "clothes": "shirt"}
    text = caption(record, subject="S*", fields=("expression", "glasses", "background"))
    assert text == "a sad portrait of S*, without glasses, on a pink background"
    assert caption({}, subject="S*") == "a portrait of S*"
    with pytest.raises(ValueError, match="'hat'"):
        caption(record, fields=("hat",))


def test_attributes_are_drawn_uniformly_over_words():
    rng = random.Random(0)
    drawn = [sample_attributes("micah", rng) for _ in range(600)]
    for field, values in (("expression", FIELDS["expression"]), ("glasses", FIELDS["glasses"])):
        for value in values:
            share = sum(getattr(attributes, field) == value for attributes in drawn) / 600
            assert share == pytest.approx(1 / len(values), abs=0.09), (field, value)


def test_prompts_of_pairs_name_nothing_now_and_then_and_every_field_as_often():
    rng = random.Random(0)
    drawn = [sample_fields(rng) for _ in range(2000)]
    assert 0.25 < sum(not fields for fields in drawn) / 2000 < 0.45
    counts = [sum(field in fields for fields in drawn) for field in ATTRIBUTE_FIELDS]
    assert max(counts) < 1.2 * min(counts)
