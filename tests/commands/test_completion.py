"""`promptnet completion`: what a shell offers after the words of a command line."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from promptnet import cli

AFTER = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(({count} - 1))
_promptnet
echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by a process of its own, which loads no network library."""
    code = "import sys; from promptnet.cli import main; main(['completion', 'bash']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    path = tmp_path_factory.mktemp("completion") / "promptnet.bash"
    path.write_text(done.stdout)
    return path


def offered(bash_script: Path, *words: str) -> list[str]:
    quoted = " ".join(map(shlex.quote, ("promptnet", *words)))
    code = AFTER.format(script=bash_script, words=quoted, count=len(words) + 1)
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (("gen",), ["generate"]),
        (("--debug", "gen"), ["generate"]),
        (("--de",), ["--debug"]),
        (("evaluate", "re"), ["resolution"]),
        (("serve", "keys", ""), ["add", "list", "revoke"]),
        (("serve", "keys", "add", "--da"), ["--data", "--database"]),
        (("serve", "--metrics"), ["--metrics-port"]),  # of `serve run`, which `serve` alone is
        (("generate", "--num-im"), ["--num-images"]),
        (("generate", "--out", "demo", "--num-im"), ["--num-images"]),  # a file may be called as a command
        (("generate", "--out", "fi"), []),  # left to the names of files
        (("completion", ""), []),
    ],
)
def test_bash_offers_what_may_follow(words: tuple[str, ...], right: list[str], bash_script: Path) -> None:
    assert offered(bash_script, *words) == right


def test_bash_offers_every_command(bash_script: Path) -> None:
    assert offered(bash_script, "") == list(cli.COMMANDS)


@pytest.mark.parametrize(
    ("shell", "lines"),
    [
        ("zsh", ["#compdef promptnet", "'generate:", "'--num-images:", "compdef _promptnet promptnet"]),
        ("fish", ["-n '__promptnet_at \"\"' -f -a generate", "-n '__promptnet_at \" generate\"' -l num-images -r"]),
    ],
)
def test_other_shells(shell: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert [line for line in lines if line not in script] == []
    assert script.count("'") % 2 == 0


def test_an_unknown_shell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bush"]) == 2
    assert "error: shell 'bush' must be one of bash, zsh, fish: did you mean bash?" in capsys.readouterr().err
