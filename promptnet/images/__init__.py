"""Pictures in: opened safely, squared to the size a model was trained at, moved about for tuning."""

from promptnet.images.opening import ImageError, open_image

__all__ = ["ImageError", "open_image"]
