"""From an exact record to an image."""

from __future__ import annotations

import io

from PIL import Image

from promptnet.datasets.avatars.person import GEOMETRY, Attributes, Avatar, Identity
from promptnet.datasets.avatars.styles import STYLES, StyleSpec
from promptnet.datasets.avatars.template import Placement, template

_INK = "#15151c"
# How far a geometry of 1 goes.
_WIDTH, _HAIR, _EYES, _EYES_SHIFT, _MOUTH, _MOUTH_SHIFT, _NOSE = 0.10, 0.06, 0.22, 0.18, 0.25, 0.16, 0.35


def render(identity: Identity, attributes: Attributes, size_px: int = 128) -> Image.Image:
    """Render one avatar; the same bytes for the same record on every machine.

    Args:
        identity: who.
        attributes: how.
        size_px: side of the square, 8 to 4096.

    Returns:
        An RGB image.
    """
    if not 8 <= size_px <= 4096:
        raise ValueError(f"size_px={size_px} is outside 8 to 4096")
    import resvg_py

    svg = to_svg(identity, attributes)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px, skip_system_fonts=True))
    return Image.open(io.BytesIO(png)).convert("RGB")


def render_avatar(avatar: Avatar, size_px: int = 128) -> Image.Image:
    """`render` of a whole record."""
    return render(avatar.identity, avatar.attributes, size_px)


def to_svg(identity: Identity, attributes: Attributes) -> str:
    """Return the avatar as SVG markup, square."""
    spec = STYLES[identity.style]
    parts = template(spec.definition)
    variants = _variants(spec, identity, attributes)
    colors = {**spec.fixed_colors, **_colors(spec, identity, attributes)}
    placements = _placements(spec, identity)
    drawing = parts.compose(variants, colors, placements, {})
    side = parts.side
    unit = f'<g transform="scale({side / 100:.4f})">'
    behind = f"{unit}{_behind(spec, identity, attributes)}</g>"
    before = f"{unit}{_collar(spec, attributes)}{_glasses(spec, identity, attributes)}</g>"
    width = spec.scale * (1 + _WIDTH * identity.geometry[0])
    frame = (
        f"translate({side / 2} {side * (0.5 + spec.shift_y / 100)}) scale({width:.4f} {spec.scale}) "
        f"translate({-side / 2} {-side / 2})"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" fill="none">'
        f'<rect width="{side}" height="{side}" fill="{attributes.background}"/>'
        f'<g transform="{frame}">{behind}{drawing}{before}</g></svg>'
    )


def _variants(spec: StyleSpec, identity: Identity, attributes: Attributes) -> dict[str, str]:
    hair, beard = identity.drawings
    chosen = {**identity.traits, **spec.hair[identity.hair][hair]}
    expressions = spec.expression[attributes.expression]
    chosen |= expressions[attributes.drawing % len(expressions)]
    chosen |= spec.clothes[attributes.clothes]
    if identity.beard != "none":
        chosen |= spec.beard[identity.beard][beard]
    if attributes.glasses != "none" and attributes.frame == "own" and spec.own_glasses:
        component, glasses, sunglasses = spec.own_glasses
        chosen[component] = (glasses if attributes.glasses == "glasses" else sunglasses)[0]
    return chosen


def _colors(spec: StyleSpec, identity: Identity, attributes: Attributes) -> dict[str, str]:
    exact = {
        "skin": identity.skin,
        "hair_color": identity.hair_color,
        "clothes_color": attributes.clothes_color,
    }
    colors = {name: exact[field] for field, names in spec.colors.items() for name in names}
    if spec.definition == "micah" and identity.beard != "none" and _is_dark(identity.hair_color):
        colors["mouth"] = "#ffffff"  # micah draws mouths in black: on a black beard nobody would see one
    return colors


def _is_dark(color: str) -> bool:
    from promptnet.datasets.avatars.colours import lab

    return lab(color)[0] < 25


def _placements(spec: StyleSpec, identity: Identity) -> dict[str, Placement]:
    how = dict(zip(GEOMETRY, identity.geometry, strict=True))
    moved = {
        "hair": Placement(scale=1 + _HAIR * how["hair_size"]),
        "eyes": Placement(shift_y=_EYES_SHIFT * how["eyes_height"], scale=1 + _EYES * how["eyes_size"]),
        "mouth": Placement(shift_y=_MOUTH_SHIFT * how["mouth_height"], scale=1 + _MOUTH * how["mouth_size"]),
        "nose": Placement(scale=1 + _NOSE * how["nose_size"]),
    }
    if spec.definition == "open-peeps":  # one component holds the whole face
        moved["mouth"] = Placement(shift_y=0.05 * how["mouth_height"], scale=1 + 0.12 * how["mouth_size"])
    return {component: moved[name] for name, components in spec.geometry.items() for component in components}


def _behind(spec: StyleSpec, identity: Identity, attributes: Attributes) -> str:
    """Neck and clothes of styles that draw none."""
    outline = f'stroke="{_INK}" stroke-width="1.1"'
    neck = f'<path d="{spec.neck}" fill="{identity.skin}" {outline}/>' if spec.neck else ""
    shoulders = f'<path d="{spec.shoulders}" fill="{attributes.clothes_color}" {outline}/>' if spec.shoulders else ""
    return shoulders + neck if spec.definition == "lorelei" else neck + shoulders


def _collar(spec: StyleSpec, attributes: Attributes) -> str:
    if not spec.collar or attributes.clothes != "shirt":
        return ""
    return f'<polygon points="{spec.collar}" fill="#ffffff" stroke="{_INK}" stroke-width="1.1"/>'


def _glasses(spec: StyleSpec, identity: Identity, attributes: Attributes) -> str:
    """Round or square glasses over the eyes: dark frame, lenses clear or black."""
    if attributes.glasses == "none" or (attributes.frame == "own" and spec.own_glasses):
        return ""
    (left_x, left_y), (right_x, right_y) = spec.eyes
    radius = spec.lens_radius
    fill = f'fill="{_INK}"' if attributes.glasses == "sunglasses" else 'fill="#ffffff" fill-opacity="0.35"'
    bridge = f'<path d="M{left_x + radius} {left_y} L{right_x - radius} {right_y}"/>'
    lenses = "".join(_lens(x, y, radius, fill, attributes.frame) for x, y in spec.eyes)
    return f'<g stroke="{_INK}" stroke-width="2.2">{lenses}{bridge}</g>'


def _lens(x: float, y: float, radius: float, fill: str, frame: str) -> str:
    if frame == "square":
        width, height = 2 * radius, 1.5 * radius
        return f'<rect x="{x - radius}" y="{y - height / 2}" width="{width}" height="{height}" rx="1" {fill}/>'
    return f'<circle cx="{x}" cy="{y}" r="{radius}" {fill}/>'
