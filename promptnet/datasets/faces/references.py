"""Which image of a person the encoder reads."""

from __future__ import annotations

import warnings
from typing import Literal

Reference = Literal["same-image", "same-identity"]
GivenReference = Literal["same-image", "same-identity", "same-picture"]


def checked_reference(given: str) -> Reference:
    """Return which image is the reference; "same-picture" is the old name of "same-image", for one release.

    Raises:
        ValueError: it is neither "same-image" nor "same-identity".
    """
    if given == "same-picture":
        warnings.warn("reference: same-picture is now same-image.", DeprecationWarning, stacklevel=3)
        return "same-image"
    if given == "same-image" or given == "same-identity":
        return given
    raise ValueError(f"reference={given!r} must be 'same-image' or 'same-identity'")
