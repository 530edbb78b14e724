"""Warnings as one line on stderr, without the place in the code that gave them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print the block's warnings for users when it ends, whether or not it raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for warning in caught:
                if warning.category.__module__.startswith("promptnet."):
                    print("warning:", warning.message, file=sys.stderr)
