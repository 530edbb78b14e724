"""Images in: opened safely, squared to the size a model was trained at, moved about for tuning."""

from promptnet.images.load import ImageError, open_image

__all__ = ["ImageError", "open_image"]
