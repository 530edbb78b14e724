"""Colours between words: named centres, exact values drawn around and between them, and distances as eyes see them.

Colour words are disjoint over fields ("ginger" is always hair, "teal" always a background), so a caption is never
ambiguous about which thing has the colour.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Mapping

Lab = tuple[float, float, float]

SKIN = {"fair": "#f8d5c2", "tan": "#dba36f", "brown": "#a4653c", "dark": "#64402f"}
HAIR_COLOR = {
    "black": "#1d1a22",
    "chestnut": "#74402a",
    "blond": "#f4cf57",
    "ginger": "#d9541e",
    "silver": "#c3c7d1",
    "violet": "#8a4fd0",
}
BACKGROUND = {
    "pink": "#ff9ccb",
    "teal": "#2fb5a8",
    "yellow": "#ffe14d",
    "white": "#ffffff",
    "navy": "#24366b",
    "lime": "#a5e65a",
}
CLOTHES_COLOR = {
    "red": "#d4232b",
    "blue": "#2f6fe4",
    "green": "#1f7d3c",
    "orange": "#f78c1e",
    "cream": "#f6ecd0",
    "charcoal": "#3a3d44",
}

NAMES: dict[str, dict[str, str]] = {
    "skin": SKIN,
    "hair_color": HAIR_COLOR,
    "background": BACKGROUND,
    "clothes_color": CLOTHES_COLOR,
}
"""Field to its words, each with the centre that it names."""

SPREAD: dict[str, Lab] = {
    "skin": (4.0, 2.0, 2.5),  # green and white skins would be no skins
    "hair_color": (7.0, 7.0, 7.0),
    "background": (4.0, 4.0, 4.0),
    "clothes_color": (7.0, 7.0, 7.0),
}
"""Standard deviation of an exact colour about its centre, in CIELAB."""

BETWEEN = {"skin": 0.4, "hair_color": 0.25, "background": 0.0, "clothes_color": 0.25}
"""Share of exact colours drawn on the way from one centre to another. Skin tones lie on one line; so do these."""

HELD_OUT_HUES = (325.0, 360.0)
"""Hues (CIELAB, degrees) of hair and clothes that no training has: magenta to rose."""
_HELD_OUT_FIELDS = ("hair_color", "clothes_color")
_HELD_OUT_CHROMA = 18.0  # greys have no hue


def rgb(color: str) -> tuple[int, int, int]:
    """Split "#rrggbb" into three numbers of 0 to 255."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


@functools.lru_cache(maxsize=65536)
def lab(color: str) -> Lab:
    """Convert "#rrggbb" (sRGB) to CIELAB under D65."""
    red, green, blue = (_linear(value / 255) for value in rgb(color))
    x = (0.4124564 * red + 0.3575761 * green + 0.1804375 * blue) / 0.95047
    y = 0.2126729 * red + 0.7151522 * green + 0.0721750 * blue
    z = (0.0193339 * red + 0.1191920 * green + 0.9503041 * blue) / 1.08883
    fx, fy, fz = (_cube_root(value) for value in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def _cube_root(value: float) -> float:
    return value ** (1 / 3) if value > 216 / 24389 else (24389 / 27 * value + 16) / 116


def hex_of(color: Lab) -> str:
    """Convert CIELAB to "#rrggbb", clipped to what sRGB has."""
    fy = (color[0] + 16) / 116
    x, y, z = (_cube(value) for value in (fy + color[1] / 500, fy, fy - color[2] / 200))
    x, z = x * 0.95047, z * 1.08883
    channels = (
        3.2404542 * x - 1.5371385 * y - 0.4985314 * z,
        -0.9692660 * x + 1.8760108 * y + 0.0415560 * z,
        0.0556434 * x - 0.2040259 * y + 1.0572252 * z,
    )
    return "#" + "".join(f"{round(255 * _gamma(min(1.0, max(0.0, value)))):02x}" for value in channels)


def _cube(value: float) -> float:
    return value**3 if value**3 > 216 / 24389 else (116 * value - 16) / (24389 / 27)


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def distance(one: str, other: str) -> float:
    """Return the Euclidean distance of two colours in CIELAB (CIE76)."""
    return math.dist(lab(one), lab(other))


def nearest_name(field: str, color: str) -> str:
    """Return the word of `field` whose centre is nearest to an exact colour."""
    return min(NAMES[field], key=lambda name: distance(NAMES[field][name], color))


def word_weights(field: str, color: str, sharpness: float = 12.0) -> Mapping[str, float]:
    """Return how much of each of a field's words an exact colour is, summing to one.

    The weights fall with the squared distance to a word's centre, as those of a normal distribution whose standard
    deviation is `sharpness` in CIELAB.
    """
    logits = {name: -((distance(centre, color) / sharpness) ** 2) / 2 for name, centre in NAMES[field].items()}
    top = max(logits.values())
    powers = {name: math.exp(value - top) for name, value in logits.items()}
    total = sum(powers.values())
    return {name: value / total for name, value in powers.items()}


def is_held_out(field: str, color: str) -> bool:
    """Whether no training has this colour in this field."""
    _, a, b = lab(color)
    hue = math.degrees(math.atan2(b, a)) % 360
    in_band = HELD_OUT_HUES[0] <= hue < HELD_OUT_HUES[1] and math.hypot(a, b) >= _HELD_OUT_CHROMA
    return in_band and field in _HELD_OUT_FIELDS


def draw_color(field: str, rng: random.Random, *, name: str | None = None) -> str:
    """Draw an exact colour of a field that trainings may have.

    Args:
        field: one of `NAMES`.
        rng: the source of randomness.
        name: the word that has to be nearest; None leaves it open.
    """
    while True:
        color = _draw(field, rng, name)
        if not is_held_out(field, color) and name in (None, nearest_name(field, color)):
            return color


def draw_held_out(field: str, rng: random.Random) -> str:
    """Draw an exact colour from the band of hair and clothes that no training has.

    Raises:
        ValueError: the field has no such band.
    """
    if field not in _HELD_OUT_FIELDS:
        raise ValueError(f"field={field!r} has no held-out colours, only {', '.join(_HELD_OUT_FIELDS)} have")
    while True:
        hue = math.radians(rng.uniform(*HELD_OUT_HUES))
        chroma = rng.uniform(30, 60)
        color = hex_of((rng.uniform(35, 75), chroma * math.cos(hue), chroma * math.sin(hue)))
        if is_held_out(field, color):
            return color


def _draw(field: str, rng: random.Random, name: str | None) -> str:
    names = NAMES[field]
    centre = lab(names[name or rng.choice(list(names))])
    if rng.random() < BETWEEN[field]:
        other, way = lab(_neighbour(field, rng, centre)), rng.random() * (0.5 if name else 1.0)
        centre = tuple(a + way * (b - a) for a, b in zip(centre, other, strict=True))
    return hex_of(tuple(rng.gauss(*value) for value in zip(centre, SPREAD[field], strict=True)))  # type: ignore[arg-type]


def _neighbour(field: str, rng: random.Random, centre: Lab) -> str:
    """Another centre; of skin tones one that is next in lightness, for between fair and dark lie the others."""
    others = sorted(NAMES[field].values(), key=lambda color: math.dist(lab(color), centre))[1:]
    return rng.choice(others[:2] if field == "skin" else others)
