"""Images of a run side by side: one row a person."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from promptnet.images.contact_sheet import contact_sheet
from promptnet.images.crop import square
from promptnet.training.callbacks.held_out_people import HeldOutPerson


def people_sheet(people: Sequence[HeldOutPerson], generated: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Reference | drawn images | true answers, where all of them are known; one row a person.

    Args:
        people: who.
        generated: each person's images, ask by ask, all of one size.
    """
    side_px, lines = generated[0][0].width, []
    for person, images in zip(people, generated, strict=True):
        truths = [eval_prompt.truth for eval_prompt in person.eval_prompts if eval_prompt.truth is not None]
        shown = [person.reference, *images, *(truths if len(truths) == len(person.eval_prompts) else [])]
        lines.append(("", [square(image.convert("RGB"), side_px) for image in shown]))
    return contact_sheet(lines)
