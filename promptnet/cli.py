"""The `promptnet` command: typed functions of `promptnet.commands` turned into subcommands.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from promptnet.commands.convert import convert
from promptnet.commands.customize import customize
from promptnet.commands.demo import demo
from promptnet.commands.edit import edit
from promptnet.commands.evaluate import avatars, base_model, edits, resolution, tune
from promptnet.commands.generate import generate
from promptnet.commands.optimize_edit import optimize_edit
from promptnet.commands.prepare import prepare

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Command = Callable[..., Any]

COMMANDS: dict[str, Command | dict[str, Command]] = {
    "demo": demo,
    "customize": customize,
    "generate": generate,
    "edit": edit,
    "optimize-edit": optimize_edit,
    "evaluate": {"avatars": avatars, "base": base_model, "edits": edits, "resolution": resolution, "tune": tune},
    "prepare": prepare,
    "convert": convert,
}

GROUP_HELP = {"evaluate": "Measure on portraits whose true answers are known."}


def build_parser() -> ArgumentParser:
    """The whole command line as a parser."""
    from importlib.metadata import version

    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="promptnet",
        description="One image of a person in, that person drawn in any situation out.",
        version=version("promptnet"),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (or set PROMPTNET_DEBUG=1)"
    )
    _add_commands(parser, COMMANDS, "command")
    return parser


def _add_commands(parser: ArgumentParser, commands: Mapping[str, Any], dest: str) -> None:
    from jsonargparse import ArgumentParser

    subcommands = parser.add_subcommands(dest=dest)
    for name, command in commands.items():
        about = GROUP_HELP[name] if isinstance(command, dict) else _summary(command)
        subparser = ArgumentParser(description=about, allow_abbrev=False)
        subcommands.add_subcommand(name, subparser, help=about)
        if isinstance(command, dict):
            _add_commands(subparser, command, "what")
        else:
            _add_options(subparser, command)


def _summary(function: Command) -> str:
    return (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")


def _add_options(parser: ArgumentParser, function: Command) -> None:
    """One option a parameter: `class_word: str = "person"` becomes `--class-word`, a list takes several values.

    `from_`, which cannot be called by the word itself, becomes `--from`.
    """
    import docstring_parser

    about = {
        param.arg_name: param.description for param in docstring_parser.parse(inspect.getdoc(function) or "").params
    }
    types = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        option = {"help": about.get(name), **_reading(types[name])}
        if parameter.default is inspect.Parameter.empty:
            option["required"] = True
        elif types[name] is not bool:
            option["default"] = parameter.default
        parser.add_argument("--" + name.strip("_").replace("_", "-"), **option)


def _reading(kind: Any) -> dict[str, Any]:
    """How argparse is to read a value of one annotated type."""
    if kind is bool:
        return {"action": "store_true"}
    for part in (kind, *typing.get_args(kind)):
        if typing.get_origin(part) is list:
            return {"nargs": "+", "type": typing.get_args(part)[0]}
    return {"type": kind}


def _chosen(arguments: Namespace) -> tuple[Command, dict[str, Any]]:
    """The function that the command line names, and its arguments."""
    command, options = COMMANDS[arguments.command], arguments[arguments.command]
    if isinstance(command, dict):
        command, options = command[options.what], options[options.what]
    parameters = {name.strip("_"): name for name in inspect.signature(command).parameters}
    return command, {parameters[name]: value for name, value in vars(options).items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 2 a user's error (one line on stderr), 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    command, options = _chosen(arguments)
    debug = arguments.debug or os.environ.get("PROMPTNET_DEBUG", "0") not in ("", "0")
    try:
        command(**options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if debug:
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
