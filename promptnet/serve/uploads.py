"""Images that come in: opened through the one guarded door, and kept as nothing but their pixels."""

import threading
from io import BytesIO

from promptnet.images.load import ImageError, open_image
from promptnet.serve.problems import Problem, invalid

_STATUS = {"not an image": 415, "file too large": 413, "too many pixels": 413}
_DECODING = threading.Semaphore(2)  # an image of the largest size takes hundreds of MB while it is decoded


def clean_image(data: bytes, max_pixels: int, field: str = "images") -> bytes:
    """Return an image as a PNG of its pixels alone: no metadata, no second file hidden in it, no name.

    Args:
        data: what was uploaded.
        max_pixels: of the image.
        field: of the form, for the error.

    Raises:
        Problem: 413, 415 or 422; it is too large, no image, or broken.
    """
    try:
        with _DECODING:
            image = open_image(BytesIO(data), max_pixels=max_pixels)
            out = BytesIO()
            image.save(out, "PNG", compress_level=1)
    except ImageError as error:
        status = _STATUS.get(error.reason, 422)
        if status == 422:
            raise invalid(f"an image {error.problem}", field) from error
        code = "not-an-image" if status == 415 else "too-large"
        raise Problem(status, code, f"an image {error.problem}") from error
    return out.getvalue()
