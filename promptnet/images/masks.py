"""Masks: grey images, white where something may happen. What could be meant in two ways is refused."""

from PIL import Image

from promptnet.images.load import MAX_PIXELS, MIN_SIZE_PX, ImageError, Source, _decoded, _name, _opened, straight_alpha

_LEAST_WHITE = 128


def open_mask(source: Source, *, max_pixels: int = MAX_PIXELS, min_size_px: int = MIN_SIZE_PX) -> Image.Image:
    """A mask as a grey image (mode "L"), opened as safely as any image.

    Args:
        source: as `opening.open_image` takes it.
        max_pixels: width times height at most.
        min_size_px: the shorter side at least.

    Raises:
        ImageError: it cannot be opened, or parts of it are transparent: some tools mean by that what is to change,
            others what is to stay.
    """
    name = _name(source)
    with _opened(source, name) as image:
        found = _decoded(image, name, max_pixels, min_size_px)
        opaque = _is_opaque(image)
    if not opaque:
        problem = (
            "has transparent parts, which may mean either what is to change or what is to stay: give a mask without "
            "transparency, white where the edit may act and black elsewhere"
        )
        raise ImageError(f"The mask, {name}, {problem}.", "pixel kind", problem)
    return found.convert("L")


def _is_opaque(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return True
    if image.mode.startswith("I"):  # 16-bit grey, of which one value is transparent
        return False
    return straight_alpha(image).convert("RGBA").getchannel("A").getextrema() == (255, 255)


def check_white(mask: Image.Image) -> None:
    """Refuse a grey mask that is nowhere white, such as one of values 0 and 1.

    Raises:
        ValueError: says how bright it is.
    """
    darkest, brightest = mask.getextrema()
    if brightest == 0:
        raise ValueError("The mask is black everywhere, so nothing could be edited: make it white where it may be.")
    if brightest < _LEAST_WHITE:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"The mask is nowhere white: its values go from {darkest} to {brightest} of 255. Multiply a mask of values "
            "0 and 1 by 255."
        )
