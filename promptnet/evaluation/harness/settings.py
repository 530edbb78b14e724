"""The parameters of every method, in `settings.yaml`: chosen on validation people by `promptnet evaluate tune`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.methods import METHODS, OURS, PUBLISHED, Method, make_method
from promptnet.inference.tuning.config import TuningConfig
from promptnet.io.atomic import write_whole


@dataclass(frozen=True)
class Settings:
    """The parameters that validation chose.

    Attributes:
        chosen: how they were chosen: command, people, prompts, steps, and the score of each choice.
        customize: encoder to the arguments of per-user tuning.
        methods: name of a method to its parameters.
    """

    chosen: Mapping[str, Any] = field(default_factory=dict)
    customize: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def method(self, name: str) -> Method:
        """Return a method with its parameters.

        Raises:
            ValueError: unknown method, or parameters that do not fit it.
        """
        return make_method(name, self.methods.get(name, {}), self.customize)

    def all_methods(self, names: Iterable[str] | None = None) -> list[Method]:
        """Return the named methods (all of them by default), in the order of `METHODS`.

        Raises:
            ValueError: unknown method, or no names at all.
        """
        wanted = list(METHODS) if names is None else list(names)
        if not wanted:
            raise ValueError(f"methods is empty: choose from {', '.join(METHODS)}")
        return [self.method(name) for name in sorted(set(wanted), key=_place)]


def load_settings(path: str | Path | None = None) -> Settings:
    """Read settings, by default the shipped ones, and check every method of them.

    Raises:
        ValueError: not a settings file, or an unknown method, encoder or parameter.
    """
    import yaml

    source = resources.files("promptnet.evaluation.harness") / "settings.yaml" if path is None else Path(path)
    if not source.is_file():
        raise ValueError(f"there is no settings file at {path}")
    try:
        content = yaml.safe_load(source.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not YAML: {error}") from error
    return _checked(content, str(source))


def save_settings(settings: Settings, path: str | Path) -> None:
    """Write settings atomically."""
    import yaml

    head = "# Parameters of each method of `promptnet evaluate avatars`, chosen on validation people.\n"
    write_whole(Path(path), head + yaml.safe_dump(asdict(settings), sort_keys=False, width=120), public=True)


def _checked(content: Any, source: str) -> Settings:
    if isinstance(content, dict) and "rows" in content:  # files of older versions
        content = {"methods" if name == "rows" else name: value for name, value in content.items()}
    if not isinstance(content, dict) or set(content) != {"chosen", "customize", "methods"}:
        raise ValueError(f"{source} is not a settings file: it has to hold chosen, customize and methods")
    _check_sections(content, source)
    unknown = set(content["customize"]) - {OURS, PUBLISHED}
    if unknown:
        raise ValueError(f"{source} customises {sorted(unknown)[0]!r}: encoders are {OURS} and {PUBLISHED}")
    for encoder, arguments in content["customize"].items():
        try:
            TuningConfig().replaced(arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: customize: {encoder}: {error}") from error
    settings = Settings(**content)
    for name in settings.methods:
        settings.method(name)
    return settings


def _check_sections(content: dict[str, Any], source: str) -> None:
    """Check that every section maps names to values, and `customize` and `methods` names to such maps."""
    places = {section: content[section] for section in ("chosen", "customize", "methods")}
    for section in ("customize", "methods"):
        entries = content[section] if isinstance(content[section], dict) else {}
        places |= {f"{section}: {name}": entry for name, entry in entries.items()}
    for place, value in places.items():
        if not isinstance(value, dict):
            raise ValueError(f"{source}: {place} has to hold names with values, not {value!r}")


def _place(name: str) -> int:
    # An unknown name sorts last; `make_method` then raises an error that lists the known names.
    return list(METHODS).index(name) if name in METHODS else len(METHODS)
