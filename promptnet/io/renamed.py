"""Old names of arguments, accepted for one release."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def renamed_arguments(**new_names: str) -> Callable[[Function], Function]:
    """Decorate a function so that it takes keyword arguments by their old names too, with a `DeprecationWarning`.

    Args:
        new_names: old name -> new name.

    Raises:
        TypeError: when called with an argument under both of its names.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **_translated(kwargs, new_names, function.__qualname__))

        return call  # pyright: ignore[reportReturnType]

    return decorate


def _translated(given: Mapping[str, Any], new_names: Mapping[str, str], function: str) -> dict[str, Any]:
    found = {name: value for name, value in given.items() if name not in new_names}
    for old, new in new_names.items():
        if old not in given:
            continue
        if new in given:
            raise TypeError(f"{function}() got {old} and {new}, which are two names of one argument: give {new}.")
        warnings.warn(f"{old} is now {new}; the old name goes with the next release.", DeprecationWarning, 3)
        found[new] = given[old]
    return found
