"""The demo's image: the reference, then for every prompt the generated image above the true one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL_PX = 192
GAP_PX = 16
FONT_PX = 14
GENERATED_TOP_PX = 92
TRUE_TOP_PX = GENERATED_TOP_PX + CELL_PX + FONT_PX + 2 * GAP_PX
INK = "#202020"
FRAME = "#c8c8c8"
CREDIT = """Portraits after micah by
Micah Lanier, personas by
Draftbit, toon-head by
Johan Melin (CC BY 4.0),
open-peeps by Pablo Stanley,
lorelei by Lisa Wischofsky
(CC0); changed: see NOTICE."""


def demo_sheet(
    reference: Image.Image, prompts: Sequence[str], generated: Sequence[Image.Image], true: Sequence[Image.Image]
) -> Image.Image:
    """Return the sheet: one column for the reference and one a prompt.

    Args:
        reference: the only image that the model got.
        prompts: of the images.
        generated: the model's images, prompt by prompt.
        true: real renders of the same person, prompt by prompt.
    """
    columns = 1 + len(prompts)
    width = GAP_PX + columns * (CELL_PX + GAP_PX)
    height = TRUE_TOP_PX + CELL_PX + GAP_PX
    sheet = Image.new("RGB", (width, height), "white")
    put(sheet, 0, GENERATED_TOP_PX, reference, "the one image given")
    write(sheet, 0, TRUE_TOP_PX + CELL_PX, CREDIT)
    for column, (prompt, image, truth) in enumerate(zip(prompts, generated, true, strict=True), start=1):
        put(sheet, column, GENERATED_TOP_PX, image, textwrap.fill(prompt, width=27))
        put(sheet, column, TRUE_TOP_PX, truth, "what is true")
    return sheet


def put(sheet: Image.Image, column: int, top_px: int, image: Image.Image, text: str) -> None:
    """Paste a framed image with its text above it."""
    left_px = left_of(column)
    write(sheet, column, top_px - GAP_PX // 2, text)
    sheet.paste(image.convert("RGB").resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS), (left_px, top_px))
    frame = (left_px - 1, top_px - 1, left_px + CELL_PX, top_px + CELL_PX)
    ImageDraw.Draw(sheet).rectangle(frame, outline=FRAME)


def write(sheet: Image.Image, column: int, bottom_px: int, text: str) -> None:
    """Write lines of text that end above `bottom_px`."""
    font = ImageFont.load_default(FONT_PX)
    ImageDraw.Draw(sheet).multiline_text((left_of(column), bottom_px), text, fill=INK, font=font, anchor="ld")


def left_of(column: int) -> int:
    """Return where a column begins, in pixels."""
    return GAP_PX + column * (CELL_PX + GAP_PX)
