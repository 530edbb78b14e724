"""Images of a run side by side: one row a person."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from promptnet.images.crop import square
from promptnet.training.callbacks.held_out_people import HeldOutPerson

_GAP_PX = 2


def contact_sheet(people: Sequence[HeldOutPerson], generated: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Reference | drawn images | true answers, where all of them are known; one row a person.

    Args:
        people: who.
        generated: each person's images, ask by ask, all of one size.
    """
    rows = []
    for person, images in zip(people, generated, strict=True):
        truths = [eval_prompt.truth for eval_prompt in person.eval_prompts if eval_prompt.truth is not None]
        rows.append([person.reference, *images, *(truths if len(truths) == len(person.eval_prompts) else [])])
    side_px = generated[0][0].width
    num_columns = max(map(len, rows))
    sheet = Image.new("RGB", (num_columns * (side_px + _GAP_PX), len(rows) * (side_px + _GAP_PX)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            place = (x * (side_px + _GAP_PX), y * (side_px + _GAP_PX))
            sheet.paste(square(image.convert("RGB"), side_px), place)
    return sheet
