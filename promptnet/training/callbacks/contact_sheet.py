"""Pictures of a run side by side: one row a person."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from promptnet.images.crop import square
from promptnet.training.callbacks.held_out_people import HeldOutPerson

_GAP_PX = 2


def contact_sheet(people: Sequence[HeldOutPerson], drawn: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Reference | drawn pictures | true answers, where all of them are known; one row a person.

    Args:
        people: who.
        drawn: each person's pictures, ask by ask, all of one size.
    """
    rows = []
    for person, pictures in zip(people, drawn, strict=True):
        truths = [ask.truth for ask in person.asks if ask.truth is not None]
        rows.append([person.reference, *pictures, *(truths if len(truths) == len(person.asks) else [])])
    side_px = drawn[0][0].width
    num_columns = max(map(len, rows))
    sheet = Image.new("RGB", (num_columns * (side_px + _GAP_PX), len(rows) * (side_px + _GAP_PX)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            place = (x * (side_px + _GAP_PX), y * (side_px + _GAP_PX))
            sheet.paste(square(picture.convert("RGB"), side_px), place)
    return sheet
