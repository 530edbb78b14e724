"""What each style draws: which of its variants means which of our words, and what of it no training ever sees.

Every style's licence allows redistribution (see NOTICE): micah, personas, toon-head and adventurer are CC BY 4.0,
open-peeps and lorelei CC0 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Variants = Mapping[str, str]
"""Component to variant."""


@dataclass(frozen=True)
class StyleSpec:
    """How one DiceBear style draws our fields.

    Attributes:
        definition: its name in dicebear-styles.
        colors: each field of colours to the style's names for it.
        fixed_colors: the style's other colours.
        hair: hair shape to the drawings that the word means; which of them is a detail no word says.
        held_out_hair: drawings, by (shape, place), that no training sees.
        beard: kind of beard to its drawings.
        expression: to its drawings.
        clothes: to the style's variant; empty where the clothes are drawn by us.
        traits: component to variants of which a person has one; details no word says.
        geometry: name of `person.GEOMETRY` to the components it moves or scales.
        scale: of the whole drawing about the canvas' centre.
        shift_y: of the whole drawing, in hundredths of the canvas.
        eyes: of a person without traits, in hundredths of the canvas, before scale and shift.
        lens_radius: the same unit.
        own_glasses: the style's own: component, and variants for "glasses" and "sunglasses".
        neck: whether neck and clothes are drawn by us, behind the style's own drawing.
        collar: points of a shirt's collar that is drawn by us, in hundredths of the canvas.
        is_held_out: no training sees this style.
    """

    definition: str
    colors: Mapping[str, tuple[str, ...]]
    hair: Mapping[str, tuple[Variants, ...]]
    beard: Mapping[str, tuple[Variants, ...]]
    expression: Mapping[str, tuple[Variants, ...]]
    clothes: Mapping[str, Variants]
    geometry: Mapping[str, tuple[str, ...]]
    scale: float
    shift_y: float
    eyes: tuple[tuple[float, float], tuple[float, float]]
    lens_radius: float
    held_out_hair: frozenset[tuple[str, int]] = frozenset()
    fixed_colors: Mapping[str, str] = field(default_factory=dict)
    traits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own_glasses: tuple[str, tuple[str, ...], tuple[str, ...]] | None = None
    neck: str = ""
    shoulders: str = ""
    collar: str = ""
    is_held_out: bool = False


def _hair(**shapes: str) -> dict[str, tuple[Variants, ...]]:
    return {shape: tuple({"hair": variant} for variant in variants.split()) for shape, variants in shapes.items()}


def _of(component: str, **words: str) -> dict[str, tuple[Variants, ...]]:
    return {word: tuple({component: variant} for variant in variants.split()) for word, variants in words.items()}


_INK = "#15151c"

STYLES: dict[str, StyleSpec] = {
    "micah": StyleSpec(
        definition="micah",
        colors={"skin": ("base",), "hair_color": ("hair", "facialHair"), "clothes_color": ("shirt",)},
        fixed_colors={"mouth": _INK, "eyes": _INK, "eyebrows": _INK, "glasses": _INK},
        hair=_hair(long="full", bob="pixie", short="dannyPhantom", quiff="fonze", mohawk="mrT"),
        beard=_of("facialHair", beard="beard"),
        expression={
            "happy": ({"mouth": "laughing", "eyebrows": "up"},),
            "calm": ({"mouth": "smile", "eyebrows": "up"}, {"mouth": "smirk", "eyebrows": "up"}),
            "sad": ({"mouth": "frown", "eyebrows": "down"}, {"mouth": "sad", "eyebrows": "down"}),
            "surprised": ({"mouth": "surprised", "eyebrows": "up"},),
        },
        clothes={"shirt": {"clothes": "collared"}, "t-shirt": {"clothes": "crew"}},
        traits={
            "nose": ("curve", "pointed", "tound"),
            "ears": ("attached", "detached"),
            "eyes": ("eyes", "round"),
            "head": ("standard",),
        },
        geometry={"hair": ("hair",), "eyes": ("eyes", "eyebrows"), "mouth": ("mouth",), "nose": ()},
        scale=1.05,
        shift_y=3,
        eyes=((43.8, 41.2), (61.8, 38.4)),
        lens_radius=7.6,
    ),
    "personas": StyleSpec(
        definition="personas",
        colors={"skin": ("skin",), "hair_color": ("hair", "facialHair"), "clothes_color": ("clothing",)},
        hair=_hair(
            long="extraLong long",
            bob="bobBangs bobCut",
            short="shortCombover fade shortComboverChops",
            curly="curly curlyHighTop",
            mohawk="mohawk",
            pigtails="pigtails",
            bun="straightBun bunUndercut curlyBun",
        ),
        held_out_hair=frozenset({("short", 2), ("bun", 2)}),
        beard=_of("facialHair", beard="beardMustache goatee", moustache="walrus pyramid"),
        expression=_of("mouth", happy="bigSmile", calm="smirk", sad="frown", surprised="surprise"),
        clothes={"shirt": {"clothes": "checkered"}, "t-shirt": {"clothes": "squared"}},
        traits={"nose": ("mediumRound", "smallRound", "wrinkles"), "eyes": ("open",)},
        geometry={"hair": ("hair",), "eyes": ("eyes",), "mouth": ("mouth",), "nose": ("nose",)},
        scale=1.14,
        shift_y=0,
        eyes=((39.6, 45.3), (60.4, 45.3)),
        lens_radius=8.2,
    ),
    "toon": StyleSpec(
        definition="toon-head",
        colors={"skin": ("skin",), "hair_color": ("hair",), "clothes_color": ("clothes",)},
        fixed_colors={"stroke": "#000000"},
        hair={
            "long": (
                {"hair": "sideComed", "rearHair": "longStraight"},
                {"hair": "sideComed", "rearHair": "longWavy"},
            ),
            "bob": (
                {"hair": "sideComed", "rearHair": "neckHigh"},
                {"hair": "sideComed", "rearHair": "shoulderHigh"},
            ),
            "short": ({"hair": "sideComed"},),
            "spiky": ({"hair": "spiky"},),
            "bun": ({"hair": "bun"},),
            "quiff": ({"hair": "undercut"},),
        },
        held_out_hair=frozenset({("bob", 1), ("quiff", 0)}),
        beard=_of("beard", beard="fullBeard longBeard", moustache="moustacheTwirl chinMoustache"),
        expression={
            "happy": ({"mouth": "laugh", "eyebrows": "happy"},),
            "calm": ({"mouth": "smile", "eyebrows": "neutral"},),
            "sad": ({"mouth": "sad", "eyebrows": "sad"},),
            "surprised": ({"mouth": "agape", "eyebrows": "raised"},),
        },
        clothes={"shirt": {"clothes": "shirt"}, "t-shirt": {"clothes": "tShirt"}},
        traits={"eyes": ("wide",), "head": ("head",), "body": ("body",)},
        geometry={"hair": ("hair", "rearHair"), "eyes": ("eyes", "eyebrows"), "mouth": ("mouth",), "nose": ()},
        scale=1.12,
        shift_y=-2,
        eyes=((40.0, 53.1), (60.0, 53.1)),
        lens_radius=8.1,
    ),
    "peeps": StyleSpec(
        definition="open-peeps",
        colors={"skin": ("skin",), "hair_color": ("headContrast",), "clothes_color": ("clothing",)},
        fixed_colors={"ink": _INK},
        hair=_of(
            "head",
            bob="bangs grayMedium",
            ponytail="cornrows",
            bun="grayBun",
            short="grayShort",
            curly="mediumBangs2",
            mohawk="mohawk mohawk2",
            quiff="short4",
        ),
        held_out_hair=frozenset({("bob", 1), ("mohawk", 1)}),
        beard=_of("facialHair", beard="full4", moustache="moustache9"),
        expression=_of(
            "expression",
            happy="smileBig smileTeethGap",
            calm="smile calm",
            sad="solemn concernedFear",
            surprised="awe hectic",
        ),
        clothes={"shirt": {}, "t-shirt": {}},
        geometry={"hair": (), "eyes": (), "mouth": ("expression",), "nose": ()},
        scale=1.06,
        shift_y=-2,
        eyes=((57.4, 50.6), (74.6, 50.4)),
        lens_radius=6.4,
        own_glasses=("accessories", ("glasses3",), ("sunglasses",)),
        collar="36,83 47,98 57,91 68,98 75,83 57,90",
    ),
    "lorelei": StyleSpec(
        definition="lorelei",
        colors={"skin": ("skin",), "hair_color": ("hair",), "clothes_color": ()},
        fixed_colors=dict.fromkeys(("eyebrows", "eyes", "freckles", "glasses", "mouth", "nose", "outline"), _INK),
        hair=_hair(
            long="variant15 variant21 variant35 variant40",
            bob="variant13 variant19 variant37",
            short="variant01 variant03 variant07 variant12 variant43",
            curly="variant05 variant24 variant39",
            spiky="variant20",
            mohawk="variant27",
            bun="variant14 variant38 variant46",
            ponytail="variant31 variant33 variant42",
            quiff="variant04 variant08",
        ),
        held_out_hair=frozenset({("long", 3), ("bob", 2), ("curly", 2), ("ponytail", 2)}),
        beard=_of("beard", beard="variant01 variant02"),
        expression={
            "happy": ({"mouth": "happy05"}, {"mouth": "happy16"}),
            "calm": ({"mouth": "happy01"}, {"mouth": "happy02"}),
            "sad": (
                {"mouth": "sad05", "eyebrows": "variant01"},
                {"mouth": "sad04", "eyebrows": "variant01"},
            ),
            "surprised": ({"mouth": "sad01", "eyebrows": "variant11"},),
        },
        clothes={"shirt": {}, "t-shirt": {}},
        traits={
            "head": ("variant01", "variant02", "variant03", "variant04"),
            "nose": ("variant01", "variant03", "variant05"),
            "eyes": ("variant10", "variant16", "variant24", "variant04"),
            "eyebrows": ("variant10", "variant03", "variant07"),
        },
        geometry={"hair": (), "eyes": ("eyes", "eyebrows"), "mouth": ("mouth",), "nose": ("nose",)},
        scale=1.12,
        shift_y=0,
        eyes=((48.8, 46.6), (67.0, 46.0)),
        lens_radius=7.0,
        own_glasses=("glasses", ("variant01", "variant03"), ("variant02",)),
        shoulders="M3 106 Q6 90 30 85 Q46 81 62 85 Q86 90 91 106Z",
        collar="33,84 40,97 47,91 54,97 61,84 47,89",
    ),
    "adventurer": StyleSpec(
        definition="adventurer",
        colors={"skin": ("skin",), "hair_color": ("hair",), "clothes_color": ()},
        fixed_colors={
            **dict.fromkeys(("eyes", "glasses", "ink"), _INK),
            "lips": "#d31e1e",
            "sclera": "#ffffff",
            "teeth": "#ffffff",
            "throat": "#8f2e45",
            "tongue": "#ea869e",
            "uvula": "#d32020",
        },
        hair=_hair(
            long="long04 long05 long09",
            bob="long01 long02 long21",
            short="short04 short10 short14",
            curly="short03",
            spiky="short16",
            mohawk="short15",
            bun="long10",
            ponytail="long19",
            pigtails="long15",
            quiff="short11",
        ),
        beard={"moustache": ({"details": "mustache"},)},
        expression=_of(
            "mouth",
            happy="variant05 variant22",
            calm="variant02 variant01",
            sad="variant03 variant14",
            surprised="variant07 variant18",
        ),
        clothes={"shirt": {}, "t-shirt": {}},
        traits={
            "head": ("default",),
            "eyes": ("variant01", "variant02", "variant03", "variant25"),
            "eyebrows": ("variant02", "variant03"),
        },
        geometry={"hair": (), "eyes": ("eyes", "eyebrows"), "mouth": ("mouth",), "nose": ()},
        scale=1.0,
        shift_y=0,
        eyes=((31.0, 51.0), (50.0, 50.0)),
        lens_radius=8.4,
        own_glasses=("glasses", ("variant02", "variant04"), ("variant01",)),
        neck="M34 70 H56 V92 Q45 96 34 92Z",
        shoulders="M8 106 Q10 90 32 87 Q45 95 58 87 Q80 90 84 106Z",
        collar="31,86 38,99 45,92 52,99 59,86 45,92",
        is_held_out=True,
    ),
}
