"""The `promptnet` command: every typed function of `promptnet.commands` is a subcommand.

Nothing heavy is imported before a command runs, so that `--help` is quick.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import typing
from argparse import BooleanOptionalAction
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.commands._completion import SHELLS, places_of, script
from promptnet.commands.batch import batch
from promptnet.commands.calibrate import calibrate
from promptnet.commands.convert import convert
from promptnet.commands.customize import customize
from promptnet.commands.demo import demo
from promptnet.commands.doctor import doctor
from promptnet.commands.edit import edit
from promptnet.commands.evaluate import (
    avatars,
    base_model,
    edits,
    exports,
    identity,
    paper,
    resolution,
    tune,
    two_people,
)
from promptnet.commands.export import export
from promptnet.commands.generate import generate
from promptnet.commands.inspect import inspect as inspect_command
from promptnet.commands.learn_edit import learn_edit
from promptnet.commands.prepare import prepare
from promptnet.commands.pretrain_e4t import pretrain_e4t
from promptnet.commands.serve import add_key, backup, list_keys, revoke_key, run, verify_deletion, work
from promptnet.commands.train_table_encoder import train_table_encoder
from promptnet.commands.ui import ui
from promptnet.inference.values import did_you_mean
from promptnet.models.placeholders import check_letters

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Command = Callable[..., Any]


def completion(shell: str, /) -> None:
    """Print a script that completes commands, options and files in a shell.

    Args:
        shell: bash, zsh or fish
    """
    if shell not in SHELLS:
        raise ValueError(f"shell '{shell}' must be one of {', '.join(SHELLS)}{did_you_mean(shell, SHELLS)}")
    print(script(shell, [*places_of(build_parser(), DEFAULTS)]), end="")


COMMANDS: dict[str, Any] = {
    "demo": demo,
    "ui": ui,
    "customize": customize,
    "generate": generate,
    "edit": edit,
    "export": export,
    "inspect": inspect_command,
    "learn-edit": learn_edit,
    "evaluate": {
        "avatars": avatars,
        "base": base_model,
        "edits": edits,
        "export": exports,
        "identity": identity,
        "paper": paper,
        "resolution": resolution,
        "tune": tune,
        "two-people": two_people,
    },
    "batch": batch,
    "pretrain-e4t": pretrain_e4t,
    "train-table-encoder": train_table_encoder,
    "prepare": prepare,
    "convert": convert,
    "calibrate": calibrate,
    "doctor": doctor,
    "completion": completion,
    "serve": {
        "run": run,
        "work": work,
        "keys": {"add": add_key, "list": list_keys, "revoke": revoke_key},
        "backup": backup,
        "verify-deletion": verify_deletion,
    },
}

# Old words of the command line, for one release.
RENAMED = {"optimize-edit": "learn-edit", "--fusion-until": "--fusion-end", "--correct-until": "--correction-end"}

_FOLDERS = ("base", "promptnet", "image_encoder", "clip")  # of options that are texts, as they may be ids of the Hub

GROUP_HELP = {
    "evaluate": "Measure on avatars whose true answers are known.",
    "serve": "Serve many users over HTTP: run (the default), work, keys, backup, verify-deletion.",
    "keys": "Make, list and revoke the keys of a service.",
}
DEFAULTS = {"serve": "run"}


def build_parser(words: Sequence[str] | None = None) -> ArgumentParser:
    """Build the parser of the whole command line.

    Args:
        words: of the command line; options are added to the commands among them only. None adds all.
    """
    from importlib.metadata import version

    from jsonargparse import ArgumentParser

    class WithDefaults(ArgumentParser):
        def parse_args(self, args: Any = None, *more: Any, **named: Any) -> Any:
            return super().parse_args(with_default(sys.argv[1:] if args is None else list(args)), *more, **named)

    parser = WithDefaults(
        prog="promptnet",
        description="Personalise a text-to-image diffusion model from a single photo, in seconds.",
        version=version("promptnet"),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (or set PROMPTNET_DEBUG=1)"
    )
    _add_commands(parser, COMMANDS, "command", words)
    return parser


def with_default(words: list[str]) -> list[str]:
    """Return the words with the subcommand that a group alone means: `serve --port 1` is `serve run --port 1`."""
    for place, word in enumerate(words):
        if word in DEFAULTS:
            after = words[place + 1 : place + 2]
            if not after or (after[0].startswith("-") and after[0] not in ("-h", "--help")):
                return [*words[: place + 1], DEFAULTS[word], *words[place + 1 :]]
        if not word.startswith("-"):
            break
    return words


def _add_commands(parser: ArgumentParser, commands: Mapping[str, Any], dest: str, words: Sequence[str] | None) -> None:
    from jsonargparse import ArgumentParser

    subcommands = parser.add_subcommands(dest=dest)
    for name, command in commands.items():
        about = GROUP_HELP[name] if isinstance(command, dict) else _summary(command)
        subparser = ArgumentParser(description=about, allow_abbrev=False)
        subcommands.add_subcommand(name, subparser, help=about)
        if isinstance(command, dict):
            _add_commands(subparser, command, "what", words)
        elif words is None or name in words:
            _add_options(subparser, command)


def _summary(function: Command) -> str:
    return (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")


def _add_options(parser: ArgumentParser, function: Command) -> None:
    """Add one option a parameter: `class_word: str = "person"` becomes `--class-word`, a list takes several values.

    `from_` becomes `--from`, because `from` is a keyword. A parameter before a `/` is given without a name. A flag that
    is on by default also gets its opposite: `verify: bool = True` becomes `--verify` and `--no-verify`.
    """
    import docstring_parser

    about = {
        param.arg_name: param.description for param in docstring_parser.parse(inspect.getdoc(function) or "").params
    }
    types = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        option = {"help": about.get(name), **_parsing(types[name], parameter.default)}
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            parser.add_argument(name, **option)
            continue
        if parameter.default is inspect.Parameter.empty:
            option["required"] = True
        elif types[name] is not bool:
            option["default"] = parameter.default
        parser.add_argument(_option(name), **option)


def _option(name: str) -> str:
    return "--" + name.strip("_").replace("_", "-")


def named(words: Sequence[str], commands: Mapping[str, Any] = COMMANDS) -> tuple[Command | None, Sequence[str]]:
    """Return the command that a command line names, and the words after it; no command if it names none.

    Raises:
        ValueError: there is no such command.
    """
    place = next((place for place, word in enumerate(words) if not word.startswith("-")), None)
    if place is None:
        return None, []
    word, rest = words[place], words[place + 1 :]
    if word not in commands:
        raise ValueError(f"there is no command '{word}'{did_you_mean(word, commands)} (promptnet --help)")
    found = commands[word]
    return named(rest, found) if isinstance(found, dict) else (found, rest)


def check_words(words: Sequence[str]) -> None:
    """Check the names of commands and options, before the parser says the same without advice.

    Raises:
        ValueError: there is no such command or option, and names the closest; or a word is no text in Unicode.
    """
    for word in words:
        check_letters(word)
    command, rest = named(words)
    if command is None:
        return
    options = inspect.signature(command).parameters
    known = ["--help", *map(_option, options)]
    known += ["--no-" + _option(name)[2:] for name, parameter in options.items() if parameter.default is True]
    for word in rest:
        option = word.partition("=")[0]
        if re.fullmatch(r"--[A-Za-z][\w-]*", option) and option not in known:
            raise ValueError(f"there is no option {option}{did_you_mean(option, known)}")


def _parsing(kind: Any, default: Any = None) -> dict[str, Any]:
    """Return the arguments for argparse that parse a value of one annotated type."""
    if kind is bool and default is True:
        return {"action": BooleanOptionalAction, "default": True}
    if kind is bool:
        return {"action": "store_true"}
    for part in (kind, *typing.get_args(kind)):
        if typing.get_origin(part) is list:
            # Repeated options add up: without "extend" the last one would win without a word.
            return {"nargs": "+", "action": "extend", "type": typing.get_args(part)[0]}
    return {"type": kind}


def _chosen(arguments: Namespace) -> tuple[Command, dict[str, Any]]:
    """Return the function that the command line names, and its arguments."""
    command, options = COMMANDS[arguments.command], arguments[arguments.command]
    while isinstance(command, dict):
        command, options = command[options.what], options[options.what]
    parameters = {name.strip("_"): name for name in inspect.signature(command).parameters}
    return command, {parameters[name]: value for name, value in vars(options).items()}


def _from_home(option: str, value: Any) -> Any:
    """Return a path with `~` at its beginning replaced: a shell does not do so in --out=~/me.png."""
    if isinstance(value, list):
        return [_from_home(option, one) for one in value]
    if isinstance(value, Path) or (isinstance(value, str) and option in _FOLDERS):
        return type(value)(os.path.expanduser(value))
    return value


def _in_new_words(argv: Sequence[str]) -> list[str]:
    """Replace old names of commands and options, and say so."""
    words = list(argv)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in RENAMED and (name.startswith("--") or place == 0):
            print(
                f"promptnet: {name} is now {RENAMED[name]}; the old name goes with the next release.", file=sys.stderr
            )
            words[place] = RENAMED[name] + equals + value
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0 is done, 1 a file that is wrong (export, inspect), 2 a user's error (one line on stderr), 130 interrupted.
    """
    words = with_default(_in_new_words(sys.argv[1:] if argv is None else argv))
    parser = build_parser(words)
    try:
        check_words(words)
    except ValueError as error:
        parser.error(str(error))
    arguments = parser.parse_args(words)
    command, options = _chosen(arguments)
    debug = arguments.debug or os.environ.get("PROMPTNET_DEBUG", "0") not in ("", "0")
    signature = inspect.signature(command).parameters
    unnamed = [name for name, each in signature.items() if each.kind is inspect.Parameter.POSITIONAL_ONLY]
    given = [options.pop(name) for name in unnamed]
    options = {name: _from_home(name, value) for name, value in options.items()}
    try:
        command(*given, **options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if debug:
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
