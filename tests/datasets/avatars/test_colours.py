"""Exact colours, their names, and the band that is held out."""

import random

import pytest

from promptnet.datasets.avatars import colours


def test_cielab_of_known_colours_and_back():
    assert colours.lab("#ffffff") == pytest.approx((100.0, 0.0, 0.0), abs=0.02)
    assert colours.lab("#ff0000") == pytest.approx((53.24, 80.09, 67.20), abs=0.05)
    for color in ("#1d1a22", "#f4cf57", "#8a4fd0", "#000000"):
        assert colours.hex_of(colours.lab(color)) == color


@pytest.mark.parametrize("field", colours.NAMES)
def test_centres_bear_their_own_names_and_are_apart(field: str):
    for name, centre in colours.NAMES[field].items():
        assert colours.nearest_name(field, centre) == name
        others = [other for other in colours.NAMES[field].values() if other != centre]
        assert min(colours.distance(centre, other) for other in others) > 15


def test_no_word_is_in_two_fields():
    words = [name for names in colours.NAMES.values() for name in names]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("field", colours.NAMES)
def test_drawn_colours_vary_keep_the_asked_name_and_avoid_the_held_out_band(field: str):
    rng = random.Random(0)
    generated = [colours.draw_color(field, rng) for _ in range(400)]
    assert len(set(generated)) > 350
    assert not any(colours.is_held_out(field, color) for color in generated)
    for name in colours.NAMES[field]:
        assert colours.nearest_name(field, colours.draw_color(field, rng, name=name)) == name


def test_held_out_colours_are_held_out_and_only_hair_and_clothes_have_them():
    rng = random.Random(1)
    for field in ("hair_color", "clothes_color"):
        assert all(colours.is_held_out(field, colours.draw_held_out(field, rng)) for _ in range(50))
    with pytest.raises(ValueError, match="field='skin'"):
        colours.draw_held_out("skin", rng)


def test_weights_of_words_sum_to_one_and_say_what_lies_between():
    weights = colours.word_weights("skin", colours.SKIN["tan"])
    assert sum(weights.values()) == pytest.approx(1.0)
    assert max(weights, key=lambda name: weights[name]) == "tan"
    tan, brown = colours.lab(colours.SKIN["tan"]), colours.lab(colours.SKIN["brown"])
    middle = colours.hex_of(tuple((a + b) / 2 for a, b in zip(tan, brown, strict=True)))  # type: ignore[arg-type]
    weights = colours.word_weights("skin", middle)
    assert weights["tan"] == pytest.approx(weights["brown"], rel=0.1)
    assert weights["tan"] > 10 * weights["dark"]
