"""Who an avatar shows and how: exact records, and endless streams of people that nobody enumerated.

An *identity* is words (style, hair shape, beard) and what no word says: exact colours, the drawing that a hair shape
has, traits of the face, and its geometry. *Attributes* are what may be asked for: expression, glasses, background,
clothes, and their exact colours. Every identity can be rendered with every attribute.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from promptnet.datasets.avatars.colours import NAMES, draw_color, draw_held_out, nearest_name
from promptnet.datasets.avatars.styles import STYLES, StyleSpec

Split = Literal["train", "validation", "test", "judge"]
World = Literal["known", "style", "hair", "color", "all"]
"""What people are drawn from: what trainings have, the held-out style, hair drawings or colours, or a mixture."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test", "judge")
WORLDS: tuple[World, ...] = ("known", "style", "hair", "color", "all")

HAIR = ("long", "bob", "short", "curly", "quiff", "mohawk", "spiky", "pigtails", "bun", "ponytail")
FIELDS: dict[str, tuple[str, ...]] = {
    "style": tuple(STYLES),
    "skin": tuple(NAMES["skin"]),
    "hair": HAIR,
    "hair_color": tuple(NAMES["hair_color"]),
    "beard": ("beard", "moustache", "none"),
    "expression": ("happy", "calm", "sad", "surprised"),
    "glasses": ("glasses", "sunglasses", "none"),
    "background": tuple(NAMES["background"]),
    "clothes": ("shirt", "t-shirt"),
    "clothes_color": tuple(NAMES["clothes_color"]),
}
"""Every field of words with all its values."""

IDENTITY_FIELDS = ("style", "skin", "hair", "hair_color", "beard")
ATTRIBUTE_FIELDS = ("expression", "glasses", "background", "clothes", "clothes_color")
COLOR_FIELDS = ("skin", "hair_color", "background", "clothes_color")
GEOMETRY = ("width", "hair_size", "eyes_size", "eyes_height", "mouth_size", "mouth_height", "nose_size")
"""Numbers of -1 to 1 that say how a face is built, 0 being the style's own drawing."""
FRAMES = ("round", "square", "own")
"""Shapes of glasses: two drawn by us, and the style's own."""


@dataclass(frozen=True)
class Identity:
    """Who an avatar shows.

    Attributes:
        style: one of `STYLES`.
        skin: exact colour "#rrggbb".
        hair: shape, a word.
        hair_color: exact colour, of the beard too.
        beard: a word.
        drawings: place among the style's drawings of that hair shape and of that beard.
        traits: component to variant, as `StyleSpec.traits` offers them.
        geometry: (7,) numbers, see `GEOMETRY`; 0 where the style cannot draw it.
    """

    style: str
    skin: str
    hair: str
    hair_color: str
    beard: str = "none"
    drawings: tuple[int, int] = (0, 0)
    traits: Mapping[str, str] = field(default_factory=dict)
    geometry: tuple[float, ...] = (0.0,) * len(GEOMETRY)

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style={self.style!r} is not one of {', '.join(STYLES)}")
        spec = STYLES[self.style]
        if self.hair not in spec.hair:
            raise ValueError(f"style {self.style!r} draws hair {', '.join(spec.hair)}, not {self.hair!r}")
        if self.beard != "none" and self.beard not in spec.beard:
            raise ValueError(f"style {self.style!r} draws {', '.join(spec.beard)} or none, not beard={self.beard!r}")

    def record(self) -> dict[str, str]:
        """Return the identity's fields as words; a colour is the nearest word."""
        return {
            "style": self.style,
            "skin": nearest_name("skin", self.skin),
            "hair": self.hair,
            "hair_color": nearest_name("hair_color", self.hair_color),
            "beard": self.beard,
        }


@dataclass(frozen=True)
class Attributes:
    """What the person does and wears, and what is behind.

    Attributes:
        expression: a word.
        glasses: a word.
        background: exact colour.
        clothes: a word.
        clothes_color: exact colour.
        drawing: place among the style's drawings of that expression.
        frame: shape of the glasses, one of `FRAMES`.
    """

    expression: str
    glasses: str
    background: str
    clothes: str
    clothes_color: str
    drawing: int = 0
    frame: str = "round"

    def __post_init__(self) -> None:
        for name in ("expression", "glasses", "clothes"):
            if getattr(self, name) not in FIELDS[name]:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(FIELDS[name])}")

    def record(self) -> dict[str, str]:
        """Return the attributes' fields as words."""
        return {
            "expression": self.expression,
            "glasses": self.glasses,
            "background": nearest_name("background", self.background),
            "clothes": self.clothes,
            "clothes_color": nearest_name("clothes_color", self.clothes_color),
        }


@dataclass(frozen=True)
class Avatar:
    """One image's exact record."""

    identity: Identity
    attributes: Attributes

    def record(self) -> dict[str, str]:
        """Return all ten fields as words, in the order of `FIELDS`."""
        return {**self.identity.record(), **self.attributes.record()}

    def colors(self) -> dict[str, str]:
        """Return the exact colours, by field."""
        return {
            "skin": self.identity.skin,
            "hair_color": self.identity.hair_color,
            "background": self.attributes.background,
            "clothes_color": self.attributes.clothes_color,
        }


def sample_identity(seed: int, index: int, split: Split = "train", world: World = "known") -> Identity:
    """Return the `index`-th person of an endless stream, a function of the arguments alone.

    Splits share nobody: exact colours and geometry make two equal people as good as impossible.

    Args:
        seed: of the stream.
        index: 0 and up.
        split: one of `SPLITS`; on "judge" nothing is trained but judges, which are instruments and have to read all.
        world: "known" draws what trainings have; "style", "hair" and "color" what none of them has; "all" half from
            what trainings have, half from the others.

    Raises:
        ValueError: `split` or `world` is not known, or something held out is asked for to train on.
    """
    if split not in SPLITS or world not in WORLDS:
        raise ValueError(
            f"split={split!r} is not one of {', '.join(SPLITS)}, or world={world!r} of {', '.join(WORLDS)}"
        )
    if split == "train" and world != "known":
        raise ValueError(f"world={world!r} is held out of training: use split='validation' or 'test'")
    rng = random.Random(f"promptnet people {seed} {split} {world} {index}")
    if world == "all":
        world = rng.choices(WORLDS[:4], (3, 1, 1, 1))[0]
    style = rng.choice([name for name, spec in STYLES.items() if spec.is_held_out == (world == "style")])
    if world == "hair":
        style = rng.choice([name for name, spec in STYLES.items() if spec.held_out_hair])
    spec = STYLES[style]
    hair, drawing = _hair(spec, world, rng)
    beard = rng.choice(list(spec.beard)) if rng.random() < 0.35 else "none"
    return Identity(
        style=style,
        skin=draw_color("skin", rng),
        hair=hair,
        hair_color=draw_held_out("hair_color", rng) if world == "color" else draw_color("hair_color", rng),
        beard=beard,
        drawings=(drawing, 0 if beard == "none" else rng.randrange(len(spec.beard[beard]))),
        traits={component: rng.choice(variants) for component, variants in spec.traits.items()},
        geometry=_geometry(spec, rng),
    )


def _hair(spec: StyleSpec, world: World, rng: random.Random) -> tuple[str, int]:
    if world == "hair":
        return rng.choice(sorted(spec.held_out_hair))
    hair = rng.choice([shape for shape in spec.hair if _known(spec, shape)])
    return hair, rng.choice(_known(spec, hair))


def _known(spec: StyleSpec, hair: str) -> list[int]:
    return [place for place in range(len(spec.hair[hair])) if (hair, place) not in spec.held_out_hair]


def _geometry(spec: StyleSpec, rng: random.Random) -> tuple[float, ...]:
    values = [max(-1.0, min(1.0, rng.gauss(0, 0.5))) for _ in GEOMETRY]
    drawable = ["width", *(name for name in GEOMETRY[1:] if spec.geometry[name.split("_")[0]])]
    return tuple(round(value, 3) if name in drawable else 0.0 for name, value in zip(GEOMETRY, values, strict=True))


def sample_attributes(style: str, rng: random.Random) -> Attributes:
    """Draw attributes independently, uniformly over words, for a person of this style."""
    expression, glasses = rng.choice(FIELDS["expression"]), rng.choice(FIELDS["glasses"])
    spec = STYLES[style]
    return Attributes(
        expression=expression,
        glasses=glasses,
        background=draw_color("background", rng, name=rng.choice(FIELDS["background"])),
        clothes=rng.choice(FIELDS["clothes"]),
        clothes_color=draw_color("clothes_color", rng),
        drawing=rng.randrange(len(spec.expression[expression])),
        frame=rng.choice(FRAMES if spec.own_glasses else FRAMES[:2]),
    )


def sample_avatar(seed: int, index: int, split: Split = "train", world: World = "known") -> Avatar:
    """Return the `index`-th avatar of the stream: its person, with attributes."""
    identity = sample_identity(seed, index, split, world)
    rng = random.Random(f"promptnet attributes {seed} {split} {world} {index}")
    return Avatar(identity, sample_attributes(identity.style, rng))


def changed(attributes: Attributes, others: Attributes, fields: set[str]) -> Attributes:
    """Return `attributes` with the named fields taken from `others`, exact details included; nothing else changes.

    Args:
        attributes: of the reference.
        others: where the named fields come from.
        fields: some of `ATTRIBUTE_FIELDS`.
    """
    taken = {name: getattr(others, name) for name in fields}
    if "expression" in fields:
        taken["drawing"] = others.drawing
    if "glasses" in fields and attributes.glasses == "none":
        taken["frame"] = others.frame
    return replace(attributes, **taken)
