"""Contact sheets: images in lines and columns, each line under its text, each column under its heading."""

import functools
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

GAP_PX, TEXT_PX = 6, 16
Line = tuple[str, Sequence[Image.Image | None]]


def contact_sheet(lines: Sequence[Line], headings: Sequence[str] = (), *, tile_px: int | None = None) -> Image.Image:
    """Lay out images in lines and columns.

    Args:
        lines: (text, images), from top to bottom; None leaves a place empty, and lines may differ in length.
        headings: of the columns.
        tile_px: side of the square that every image is resized to; None leaves each in its own size.

    Returns:
        An RGB image. There is no room for texts or headings where there are none.

    Raises:
        ValueError: there are no images.
    """
    tiles = [[None if image is None else _tile(image, tile_px) for image in images] for _, images in lines]
    if not any(tile for line in tiles for tile in line):
        raise ValueError("A contact sheet needs one image at least.")
    lefts, width = _lefts(tiles)
    pitch = max(tile.height for line in tiles for tile in line if tile) + GAP_PX + _room(text for text, _ in lines)
    top = GAP_PX + 2 * _room(headings)
    sheet = Image.new("RGB", (width, top + pitch * len(lines)), "white")
    _write_headings(sheet, lefts, headings)
    for number, ((text, _), line) in enumerate(zip(lines, tiles, strict=True)):
        _put_line(sheet, lefts, top + number * pitch, text, line)
    return sheet


def _tile(image: Image.Image, tile_px: int | None) -> Image.Image:
    image = image.convert("RGB")
    return image if tile_px is None else image.resize((tile_px, tile_px), Image.Resampling.LANCZOS)


def _lefts(tiles: Sequence[Sequence[Image.Image | None]]) -> tuple[list[int], int]:
    """Return where each column begins, and where the last one ends; a column is as wide as its widest image."""
    lefts = [GAP_PX]
    for column in range(max(map(len, tiles))):
        widths = [tile.width for line in tiles for tile in line[column : column + 1] if tile]
        lefts.append(lefts[-1] + max(widths, default=0) + GAP_PX)
    return lefts[:-1], lefts[-1]


def _room(texts: Iterable[str]) -> int:
    return TEXT_PX if any(texts) else 0


def _put_line(
    sheet: Image.Image, lefts: Sequence[int], top: int, text: str, line: Sequence[Image.Image | None]
) -> None:
    pen = ImageDraw.Draw(sheet)
    if text:
        pen.text((GAP_PX, top), text, fill="black", font=_font())
        top += TEXT_PX
    for left, tile in zip(lefts, line, strict=False):
        if tile is not None:
            # A white background would have no edge.
            pen.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline="lightgray")
            sheet.paste(tile, (left, top))


def _write_headings(sheet: Image.Image, lefts: Sequence[int], headings: Sequence[str]) -> None:
    pen = ImageDraw.Draw(sheet)
    for left, heading in zip(lefts, headings, strict=False):
        pen.multiline_text((left, 2), _folded(heading), fill="black", font=_font())


def _folded(heading: str) -> str:
    """Fold a long heading onto two lines, at a hyphen."""
    if len(heading) <= 16:
        return heading
    cut = heading.rfind("-", 0, 19) + 1 or 16
    return f"{heading[:cut]}\n{heading[cut:]}"


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=12)
