"""The preview beside a subject: its reference as the encoder sees it, and S* generated again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from promptnet.commands._progress import sampling_bar

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Generator

    from promptnet import PromptNetPipeline, Subject


def preview_sheet(
    pipe: PromptNetPipeline, subject: Subject, generator: Generator, losses: tuple[float, float] | None
) -> tuple[Image, str]:
    """Return the two images side by side above a line of text, and that text: how alike they are, and the losses.

    Args:
        pipe: that the subject was made with.
        subject: whose first reference is shown.
        generator: of the noise.
        losses: at held-out noise levels, before and after tuning; None if there was none.
    """
    prompt = pipe.config["tuning"].get("prompts", ["a photo of S*"])[0]
    with sampling_bar(pipe, "generating the preview") as callback:
        generated: Any = pipe(prompt, subject=subject, generator=generator, callback_on_step_end=callback)
    reference, drawn = reference_image(pipe, subject), generated.images[0]
    loss = "not tuned" if losses is None else f"loss {losses[0]:.4f} before, {losses[1]:.4f} after"
    told = "; ".join([*judgement(pipe, reference, drawn), loss])
    return labelled({"as the encoder sees it": reference, prompt: drawn}, told), told


def judgement(pipe: PromptNetPipeline, reference: Image, drawn: Image) -> list[str]:
    """Say how alike a person drawn again is, and how far the reference from what the encoder knows, if that is known.

    Args:
        pipe: holds the encoder.
        reference: as the encoder sees it.
        drawn: the person drawn again.
    """
    known = getattr(pipe.promptnet, "familiarity", None)  # a model without an encoder knows nobody
    if known is None:
        return []
    alike, distance = pipe.likeness(reference, drawn), pipe.assess(reference).distance
    assert alike is not None
    assert distance is not None
    return [known.verdict(distance, alike), f"likeness {alike:.2f}", f"distance {distance:.2f} of {known.doubtful:.2f}"]


def labelled(images: Mapping[str, Image], below: str) -> Image:
    """Return images side by side, each below its text, with a line of text at the bottom."""
    from PIL import Image as Images

    from promptnet.commands._demo_sheet import CELL_PX, FONT_PX, GAP_PX, left_of, put, write

    top_px = 2 * GAP_PX + FONT_PX
    bottom_px = top_px + CELL_PX + GAP_PX + FONT_PX
    sheet = Images.new("RGB", (left_of(len(images)), bottom_px + GAP_PX), "white")
    for column, (text, image) in enumerate(images.items()):
        put(sheet, column, top_px, image, text)
    write(sheet, 0, bottom_px, below)
    return sheet


def reference_image(pipe: PromptNetPipeline, subject: Subject) -> Image:
    """Return the first reference of a subject, decoded from its latents."""
    import torch

    from promptnet.inference.references import decode_finite

    with torch.no_grad():
        latents = subject.reference_latents[:1].to(pipe.vae.device, pipe.vae.dtype)
        images: Any = pipe.image_processor.postprocess(decode_finite(pipe.vae, latents))
    return images[0]
