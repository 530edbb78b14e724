"""SVG of a DiceBear style, taken apart once, so that people are composed by joining strings.

DiceBear builds one avatar in 12 to 60 ms, offers no placement of components, and drops a colour that equals another
without a word. Here each component's variants are taken once with placeholders for colours; composing a person
is then string replacement, a component may be moved, turned and scaled about its centre, and no colour is dropped.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from dicebear import Style

_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)


@dataclass(frozen=True)
class Placement:
    """How a component is moved: shifts as shares of its own width and height, degrees, and a factor of its size."""

    shift_x: float = 0.0
    shift_y: float = 0.0
    rotate: float = 0.0
    scale: float = 1.0

    def transform(self, width: float, height: float) -> str:
        """Return the SVG transform for a component of this size."""
        x, y = width / 2, height / 2
        return (
            f"translate({self.shift_x * width + x:.2f} {self.shift_y * height + y:.2f}) "
            f"rotate({self.rotate:.2f}) scale({self.scale:.4f}) translate({-x:.2f} {-y:.2f})"
        )


@dataclass(frozen=True)
class Template:
    """A style in parts.

    Attributes:
        side: of the square canvas.
        sizes: width and height of each component.
        variants: component and variant to SVG markup, colours as placeholders, without the group around it.
        body: the canvas: what is drawn, in order, by `<use href="#component"/>`.
        placeholders: colour name to the placeholder in the markup.
    """

    side: float
    sizes: Mapping[str, tuple[float, float]]
    variants: Mapping[tuple[str, str], str]
    body: str
    placeholders: Mapping[str, str]

    def compose(
        self,
        variants: Mapping[str, str],
        colors: Mapping[str, str],
        placements: Mapping[str, Placement],
        generated: Mapping[str, str],
    ) -> str:
        """Return definitions and body of one avatar.

        Args:
            variants: component to its variant; components that are not named are left out.
            colors: the style's colour names to "#rrggbb".
            placements: of components; the others stay where the style has them.
            generated: component to markup of our own, in the component's coordinates.

        Raises:
            ValueError: the style has no such variant.
        """
        groups = "".join(self._group(name, variants.get(name), placements.get(name), generated) for name in self.sizes)
        markup = f"<defs>{groups}</defs>{self.body}"
        for name, placeholder in self.placeholders.items():
            markup = markup.replace(placeholder, colors.get(name, "#000000"))
        return markup

    def _group(self, name: str, variant: str | None, placement: Placement | None, generated: Mapping[str, str]) -> str:
        markup = generated.get(name)
        if markup is None and variant is None:
            return f'<g id="{name}"/>'
        if markup is None:
            if (name, str(variant)) not in self.variants:
                raise ValueError(f"the style has no variant {variant!r} of component {name!r}")
            markup = self.variants[name, str(variant)]
        if placement is None:
            return f'<g id="{name}">{markup}</g>'
        return f'<g id="{name}"><g transform="{placement.transform(*self.sizes[name])}">{markup}</g></g>'


@functools.cache
def template(definition: str) -> Template:
    """Take a DiceBear style apart (about a second).

    Args:
        definition: its name in dicebear-styles, for example "open-peeps".
    """
    data = _definition(definition)
    style = _style(data)
    placeholders = {name: f"#0{index:02x}bad" for index, name in enumerate(data["colors"], 1)}
    components = {name: list(entry["variants"]) for name, entry in data["components"].items()}
    variants: dict[tuple[str, str], str] = {}
    body = ""
    for turn in range(max(map(len, components.values()))):
        chosen = {name: names[turn % len(names)] for name, names in components.items()}
        groups, body = _taken_apart(style, chosen, placeholders)
        variants |= groups
    sizes = {name: (float(entry["width"]), float(entry["height"])) for name, entry in data["components"].items()}
    return Template(float(data["canvas"]["width"]), sizes, variants, body, placeholders)


def _definition(name: str) -> dict[str, Any]:
    try:
        text = importlib.resources.files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. Avatars need the extra: pip install 'promptnet[avatars]'") from error
    return json.loads(text)


def _style(data: dict[str, Any]) -> Style:
    from dicebear import Style

    return Style(data)


def _taken_apart(
    style: Style, chosen: Mapping[str, str], placeholders: Mapping[str, str]
) -> tuple[dict[tuple[str, str], str], str]:
    """Draw one avatar with every component, and return its components' markup and the canvas."""
    from dicebear import Avatar

    options: dict[str, Any] = {"seed": "promptnet"}
    for name, variant in chosen.items():
        options |= {f"{name}Variant": [variant], f"{name}Probability": 100}
    options |= {f"{name}Color": [color] for name, color in placeholders.items()}
    root = ElementTree.fromstring(str(Avatar(style, options)))
    ids: dict[str, str] = {}
    groups: dict[tuple[str, str], str] = {}
    definitions = root.find(f"{{{_SVG}}}defs")
    assert definitions is not None
    for group in definitions:
        match = re.fullmatch(r"(.+)-([0-9a-f]{8})", group.get("id", ""))
        name = next((n for n, v in chosen.items() if match and match[1] == f"{n}-{v}"), None)
        if name is not None:
            ids[group.attrib["id"]] = name
            groups[name, chosen[name]] = "".join(_text(part) for part in group)
    canvas = root.find(f"{{{_SVG}}}g")
    assert canvas is not None
    renamed = {place: _renamed(markup, ids) for place, markup in groups.items()}
    return renamed, _renamed(
        "".join(_text(part) for part in canvas if part.tag.endswith("}use") or len(part) or part.get("d")), ids
    )


def _text(element: ElementTree.Element) -> str:
    return ElementTree.tostring(element, encoding="unicode").replace(f' xmlns="{_SVG}"', "")


def _renamed(markup: str, ids: Mapping[str, str]) -> str:
    for long, short in ids.items():
        markup = markup.replace(f"#{long}", f"#{short}")
    return markup
