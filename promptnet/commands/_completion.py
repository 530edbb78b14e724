"""Scripts that complete the command line in a shell, made from its parsers: `promptnet completion bash`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Option:
    """One option: its name, whether a value follows, and what it is for."""

    name: str
    has_value: bool
    about: str


@dataclass(frozen=True)
class Place:
    """What may follow the words of a command.

    Args:
        words: the command's, each behind a space: "" is `promptnet` alone, " serve keys" a group.
        commands: further commands, with what they are for.
        options: of the command, or of the one that a group alone means.
    """

    words: str
    commands: Mapping[str, str]
    options: Sequence[Option]


def places_of(parser: argparse.ArgumentParser, defaults: Mapping[str, str], words: str = "") -> Iterator[Place]:
    """List every place of a command line.

    Args:
        parser: with its subcommands.
        defaults: the subcommand that a group alone means.
        words: that lead to this parser.
    """
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    below = {name: sub for group in groups for name, sub in group.choices.items()}
    options = list(_options_of(parser))
    meant = defaults.get(words.rpartition(" ")[2])
    if meant is not None:
        options += [option for option in _options_of(below[meant]) if option not in options]
    yield Place(words, {name: sub.description or "" for name, sub in below.items()}, options)
    for name, sub in below.items():
        yield from places_of(sub, defaults, f"{words} {name}")


def _options_of(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for action in parser._actions:
        for name in action.option_strings:
            if name.startswith("--") and action.help != argparse.SUPPRESS:
                yield Option(name, action.nargs != 0, _plain(action.help))


def _plain(text: Any) -> str:
    """Return a text on one line, without what a shell or argparse would read in it."""
    line = " ".join(str(text or "").split())
    return "".join(letter for letter in line if letter not in "'\"`$\\%:[]")


def script(shell: str, places: Sequence[Place]) -> str:
    """Return the script for a shell.

    Args:
        shell: one of `SHELLS`.
        places: of the command line.
    """
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](places)


def _known(places: Sequence[Place]) -> list[str]:
    """The words that lead to commands."""
    return [f'"{place.words}"' for place in places if place.words]


_BASH = """\
# promptnet: completion for bash. Names of files are completed where no command and no option can stand.
_promptnet() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" place="" word commands options
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$place $word" in
            {known}) place="$place $word" ;;
        esac
    done
    case "$place" in
{cases}
    esac
    if [[ "$current" == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
    else
        COMPREPLY=($(compgen -W "$commands" -- "$current"))
    fi
}}
complete -o default -F _promptnet promptnet
"""


def _bash(places: Sequence[Place]) -> str:
    cases = [
        f'        "{place.words}") commands="{" ".join(place.commands)}" '
        f'options="{" ".join(option.name for option in place.options)}" ;;'
        for place in places
    ]
    return _BASH.format(known="|".join(_known(places)), cases="\n".join(cases))


_ZSH = """\
#compdef promptnet
# promptnet: completion for zsh. Names of files are completed where no command and no option can stand.
_promptnet() {{
    local place="" word
    local -a commands options
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "$place $word" in
            ({known}) place="$place $word" ;;
        esac
    done
    case "$place" in
{cases}
    esac
    if [[ "$PREFIX" == -* ]]; then
        _describe option options
    elif (( $#commands )); then
        _describe command commands
    else
        _files
    fi
}}
compdef _promptnet promptnet
"""


def _zsh(places: Sequence[Place]) -> str:
    def listed(entries: Sequence[tuple[str, str]]) -> str:
        return " ".join(f"'{name}:{_plain(about)}'" for name, about in entries)

    cases = [
        f'        ("{place.words}") commands=({listed([*place.commands.items()])}) '
        f"options=({listed([(option.name, option.about) for option in place.options])}) ;;"
        for place in places
    ]
    return _ZSH.format(known="|".join(_known(places)), cases="\n".join(cases))


_FISH = """\
# promptnet: completion for fish.
function __promptnet_at
    set -l place ""
    for word in (commandline -opc)[2..-1]
        if contains -- "$place $word" {known}
            set place "$place $word"
        end
    end
    test "$place" = "$argv[1]"
end
{lines}
"""


def _fish(places: Sequence[Place]) -> str:
    lines = []
    for place in places:
        here = f"complete -c promptnet -n '__promptnet_at \"{place.words}\"'"
        lines += [f"{here} -f -a {name} -d '{_plain(about)}'" for name, about in place.commands.items()]
        lines += [
            f"{here} -l {option.name[2:]}{' -r' if option.has_value else ''} -d '{option.about}'"
            for option in place.options
        ]
    return _FISH.format(known=" ".join(_known(places)), lines="\n".join(lines))
