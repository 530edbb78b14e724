"""Public names of a room that are loaded when they are first used, so that importing a room costs nothing."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, homes: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package whose public names stand in other modules (PEP 562).

    Args:
        package: name of the package.
        homes: public name -> the module that defines it, as a full name or below the package, such as "vae".
        renamed: old name -> public name; the old one works with a `DeprecationWarning` for one release.
    """

    def get(name: str) -> Any:
        if renamed and name in renamed:
            message = f"{package}.{name} is now {package}.{renamed[name]}; the old name goes with the next release."
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            name = renamed[name]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        return getattr(import_module(home if "." in home else f"{package}.{home}"), name)

    def names() -> list[str]:
        module = import_module(package)
        return sorted({*vars(module), *module.__all__})

    return get, names
