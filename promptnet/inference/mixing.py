"""The room of edits under its name of before, for one release: use `promptnet.inference.editing`."""

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    from promptnet.inference import editing

    renamed = {"MixingError": "EditError", "MixingWeights": "EditCard"}.get(name, name)
    found = getattr(editing, renamed)
    warnings.warn(
        f"promptnet.inference.mixing.{name} is now promptnet.inference.editing.{renamed}.", DeprecationWarning, 2
    )
    return found
