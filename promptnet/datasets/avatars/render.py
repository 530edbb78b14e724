"""Procedural cartoon avatars: every image has an exact record of who it is and what it wears.

An avatar is an *identity* (who: style, skin, hair, beard) and *attributes* (how: expression, glasses, background,
clothes). Any identity can be rendered with any attributes at any size, which gives the true answer to "this person,
sad, in sunglasses, on a pink background". The drawings are DiceBear styles whose licences allow redistribution
(see NOTICE); the glasses are drawn by this module on top, because only one of the styles has glasses of its own.

Colour words are disjoint over fields ("ginger" is always hair, "teal" always a background), so a caption is never
ambiguous about which thing has the colour.
"""

from __future__ import annotations

import functools
import importlib.resources
import io
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

if TYPE_CHECKING:
    from dicebear import Style

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

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


@dataclass(frozen=True)
class StyleSpec:
    """How one DiceBear style draws our fields: which of its variants means which of our values."""

    definition: str
    skin: str
    clothes_color: str
    beard: str
    beard_variant: str
    beard_color: str
    hair: dict[str, dict[str, str | None]]
    expression: dict[str, dict[str, str]]
    clothes: dict[str, str]
    fixed: dict[str, Any]
    scale: float
    translate_y: float
    eyes: tuple[tuple[float, float], tuple[float, float]]
    lens_radius: float


# Eyes and lens radii are percentages of the image's side, at the scale and shift given beside them.
STYLES: dict[str, StyleSpec] = {
    "micah": StyleSpec(
        definition="micah",
        skin="base",
        clothes_color="shirt",
        beard="facialHair",
        beard_variant="beard",
        beard_color="facialHair",
        hair={
            "long": {"hair": "full"},
            "bob": {"hair": "pixie"},
            "short": {"hair": "dannyPhantom"},
            "quiff": {"hair": "fonze"},
            "mohawk": {"hair": "mrT"},
        },
        expression={
            "happy": {"mouth": "laughing", "eyebrows": "up"},
            "sad": {"mouth": "frown", "eyebrows": "down"},
            "surprised": {"mouth": "surprised", "eyebrows": "up"},
        },
        clothes={"shirt": "collared", "t-shirt": "crew"},
        fixed={
            "earsVariant": ["attached"],
            "earringsProbability": 0,
            "eyesVariant": ["eyes"],
            "glassesProbability": 0,
            "noseVariant": ["curve"],
            "hairProbability": 100,
        },
        scale=1.1,
        translate_y=2,
        eyes=((43.2, 42.2), (63.0, 39.2)),
        lens_radius=8.4,
    ),
    "personas": StyleSpec(
        definition="personas",
        skin="skin",
        clothes_color="clothing",
        beard="facialHair",
        beard_variant="goatee",
        beard_color="facialHair",
        hair={
            "long": {"hair": "extraLong"},
            "bob": {"hair": "bobBangs"},
            "short": {"hair": "shortCombover"},
            "curly": {"hair": "curly"},
            "pigtails": {"hair": "pigtails"},
            "bun": {"hair": "straightBun"},
        },
        expression={
            "happy": {"mouth": "bigSmile"},
            "sad": {"mouth": "frown"},
            "surprised": {"mouth": "surprise"},
        },
        clothes={"shirt": "checkered", "t-shirt": "squared"},
        fixed={"eyesVariant": ["open"], "noseVariant": ["smallRound"]},
        scale=1.22,
        translate_y=-1,
        eyes=((37.3, 42.4), (62.7, 42.4)),
        lens_radius=10.0,
    ),
    "toon": StyleSpec(
        definition="toon-head",
        skin="skin",
        clothes_color="clothes",
        beard="beard",
        beard_variant="fullBeard",
        beard_color="hair",
        hair={
            "long": {"hair": "sideComed", "rearHair": "longStraight"},
            "bob": {"hair": "sideComed", "rearHair": "neckHigh"},
            "short": {"hair": "sideComed", "rearHair": None},
            "spiky": {"hair": "spiky", "rearHair": None},
            "bun": {"hair": "bun", "rearHair": None},
        },
        expression={
            "happy": {"mouth": "laugh", "eyebrows": "happy"},
            "sad": {"mouth": "sad", "eyebrows": "sad"},
            "surprised": {"mouth": "agape", "eyebrows": "raised"},
        },
        clothes={"shirt": "shirt", "t-shirt": "tShirt"},
        fixed={"eyesVariant": ["wide"], "hairProbability": 100},
        scale=1.2,
        translate_y=-4,
        eyes=((38.0, 49.7), (62.0, 49.7)),
        lens_radius=9.8,
    ),
}

HAIR = tuple(dict.fromkeys(shape for spec in STYLES.values() for shape in spec.hair))

FIELDS: dict[str, tuple[str, ...]] = {
    "style": tuple(STYLES),
    "skin": tuple(SKIN),
    "hair": HAIR,
    "hair_color": tuple(HAIR_COLOR),
    "beard": ("beard", "none"),
    "expression": ("happy", "sad", "surprised"),
    "glasses": ("glasses", "sunglasses", "none"),
    "background": tuple(BACKGROUND),
    "clothes": ("shirt", "t-shirt"),
    "clothes_color": tuple(CLOTHES_COLOR),
}
"""Every field of a record with all its values, over all styles (a style draws some of the hair shapes only)."""

IDENTITY_FIELDS = ("style", "skin", "hair", "hair_color", "beard")
ATTRIBUTE_FIELDS = ("expression", "glasses", "background", "clothes", "clothes_color")


class _Record:
    def record(self) -> dict[str, str]:
        """The fields as a plain dictionary, field name to value."""
        return asdict(self)  # type: ignore[call-overload]

    def __post_init__(self) -> None:
        for field, value in self.record().items():
            if value not in FIELDS[field]:
                raise ValueError(f"{field}={value!r} is not one of {', '.join(FIELDS[field])}")


@dataclass(frozen=True)
class Identity(_Record):
    """Who an avatar shows. Values are those of `FIELDS`; the hair shape must be one that the style draws."""

    style: str
    skin: str
    hair: str
    hair_color: str
    beard: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hair not in STYLES[self.style].hair:
            raise ValueError(f"style {self.style!r} draws hair {', '.join(STYLES[self.style].hair)}, not {self.hair!r}")


@dataclass(frozen=True)
class Attributes(_Record):
    """What the person of an avatar does and wears, and what is behind. Values are those of `FIELDS`."""

    expression: str
    glasses: str
    background: str
    clothes: str
    clothes_color: str


@dataclass(frozen=True)
class AvatarRecord:
    """One image's complete record."""

    identity: Identity
    attributes: Attributes

    def record(self) -> dict[str, str]:
        """All ten fields as one dictionary, in the order of `FIELDS`."""
        return {**self.identity.record(), **self.attributes.record()}

    def render(self, size_px: int = 64) -> Image.Image:
        """`render` of this record."""
        return render(self.identity, self.attributes, size_px)


def all_identities() -> Iterator[Identity]:
    """Every identity that can be drawn, in a fixed order."""
    for style, spec in STYLES.items():
        for skin, hair, color, beard in itertools.product(SKIN, spec.hair, HAIR_COLOR, FIELDS["beard"]):
            yield Identity(style, skin, hair, color, beard)


@functools.cache
def identities(split: Split) -> tuple[Identity, ...]:
    """The people of one split. Splits share no identity; a fixed shuffle makes all three alike.

    Args:
        split: `"train"` (three quarters), `"validation"` or `"test"` (an eighth each).
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    people = list(all_identities())
    random.Random("promptnet avatars").shuffle(people)
    eighth = len(people) // 8
    return tuple(
        {"test": people[:eighth], "validation": people[eighth : 2 * eighth], "train": people[2 * eighth :]}[split]
    )


def sample_attributes(rng: random.Random) -> Attributes:
    """Attributes drawn independently and uniformly from `FIELDS`."""
    return Attributes(**{field: rng.choice(FIELDS[field]) for field in ATTRIBUTE_FIELDS})


def sample_avatar(seed: int, index: int, split: Split = "train") -> AvatarRecord:
    """The `index`-th portrait of an endless, deterministic stream; a function of (seed, index, split) alone."""
    rng = random.Random(f"{seed} {split} {index}")
    return AvatarRecord(rng.choice(identities(split)), sample_attributes(rng))


@functools.cache
def _style(definition: str) -> Style:
    try:
        from dicebear import Style

        text = importlib.resources.files("dicebear_styles").joinpath(f"{definition}.json").read_text("utf-8")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. Portraits need the extra: pip install 'promptnet[avatars]'") from error
    return Style(json.loads(text))


def _options(identity: Identity, attributes: Attributes) -> dict[str, Any]:
    """DiceBear's options for one record: `{component}Variant`, `{component}Probability`, `{color}Color`."""
    spec = STYLES[identity.style]
    variants: dict[str, str | None] = {
        **spec.hair[identity.hair],
        **spec.expression[attributes.expression],
        "clothes": spec.clothes[attributes.clothes],
        spec.beard: spec.beard_variant if identity.beard == "beard" else None,
    }
    options: dict[str, Any] = {"seed": "promptnet", "scale": spec.scale, "translateY": spec.translate_y, **spec.fixed}
    for component, variant in variants.items():
        options[f"{component}Probability"] = 0 if variant is None else 100
        if variant is not None:
            options[f"{component}Variant"] = [variant]
    options["hairColor"] = [HAIR_COLOR[identity.hair_color]]
    options[f"{spec.beard_color}Color"] = [HAIR_COLOR[identity.hair_color]]
    options[f"{spec.skin}Color"] = [SKIN[identity.skin]]
    options[f"{spec.clothes_color}Color"] = [CLOTHES_COLOR[attributes.clothes_color]]
    options["backgroundColor"] = [BACKGROUND[attributes.background]]
    if identity.style == "micah" and identity.beard == "beard" and identity.hair_color == "black":
        options["mouthColor"] = ["#ffffff"]  # micah draws mouths in black: on a black beard nobody would see one
    return options


def _glasses_svg(spec: StyleSpec, kind: str) -> str:
    """Round glasses over the style's eyes, in a 100 x 100 canvas: dark frame, lenses clear or black."""
    (left_x, left_y), (right_x, right_y) = spec.eyes
    r = spec.lens_radius
    fill = 'fill="#15151c"' if kind == "sunglasses" else 'fill="#ffffff" fill-opacity="0.35"'
    lenses = "".join(f'<circle cx="{x}" cy="{y}" r="{r}" {fill}/>' for x, y in spec.eyes)
    bridge = f'<path d="M{left_x + r} {left_y} L{right_x - r} {right_y}" fill="none"/>'
    return f'<g stroke="#15151c" stroke-width="2.6">{lenses}{bridge}</g>'


def to_svg(identity: Identity, attributes: Attributes) -> str:
    """The avatar as SVG markup (square)."""
    from dicebear import Avatar

    svg = str(Avatar(_style(STYLES[identity.style].definition), _options(identity, attributes)))
    if attributes.glasses == "none":
        return svg
    overlay = _glasses_svg(STYLES[identity.style], attributes.glasses)
    body, _, _ = svg.rpartition("</svg>")
    # A nested <svg> brings its own 100 x 100 canvas, whatever the style's view box is.
    return f'{body}<svg x="0" y="0" width="100%" height="100%" viewBox="0 0 100 100">{overlay}</svg></svg>'


def render(identity: Identity, attributes: Attributes, size_px: int = 64) -> Image.Image:
    """Draw one avatar.

    Args:
        identity: who.
        attributes: how.
        size_px: side of the square image, 8 to 4096.

    Returns:
        An RGB image, `size_px` on a side; the same bytes for the same record on every machine.
    """
    if not 8 <= size_px <= 4096:
        raise ValueError(f"size_px={size_px} is outside 8 to 4096")
    svg = to_svg(identity, attributes)
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px, skip_system_fonts=True))
    return Image.open(io.BytesIO(png)).convert("RGB")
