"""The documentation: the README's limits, names that pages may use, and a site that needs nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def sentences(text: str) -> list[str]:
    """Sentences of a page outside of code, tables and headings; a bullet ends where the next begins."""
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.S)
    lines = ["" if re.match(r"\s*(\||#|!\[)", line) else line for line in text.splitlines()]
    paragraphs = re.split(r"\n\s*\n|\n(?=[-*] )", "\n".join(lines))
    whole = [re.sub(r"\]\([^)]*\)", "]", " ".join(paragraph.split())) for paragraph in paragraphs]
    return [sentence for paragraph in whole for sentence in re.split(r"(?<=[.:;!?])\s+", paragraph) if sentence]


def test_sentences_are_found() -> None:
    assert sentences("# a b\n\nOne two. Three\nfour.\n\n| x |\n\n- five\n- six") == [
        "One two.",
        "Three four.",
        "- five",
        "- six",
    ]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


def test_no_sentence_of_the_readme_is_long() -> None:
    assert [said for said in sentences((ROOT / "README.md").read_text("utf-8")) if len(said.split()) > 25] == []


def modules_named(text: str) -> set[str]:
    """Dotted names of our modules in a page, cut to what is a file in the package."""
    named = set()
    for name in re.findall(r"\bpromptnet(?:\.[a-z_]+)+", text):
        parts = name.split(".")
        found = [
            parts[:end]
            for end in range(1, len(parts) + 1)
            if (ROOT / "/".join(parts[:end])).with_suffix(".py").is_file()
        ]
        named |= {".".join(found[-1])} if found else set()
    return named


def test_leaf_modules_are_told_from_rooms() -> None:
    assert modules_named("from promptnet.inference.sampling.loop import Rule") == {"promptnet.inference.sampling.loop"}
    assert modules_named("from promptnet.inference.resolution import adapt_resolution") == set()


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_pages_name_rooms_and_no_leaf_module(page: Path) -> None:
    if page.name != "names.md":  # class paths of configs
        found = modules_named(page.read_text("utf-8"))
        assert found <= ({"promptnet.serve.ray"} if page.name == "deploy.md" else set())  # what `serve run` is given


def in_navigation(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in in_navigation(part)]  # type: ignore[union-attr]


def test_every_page_is_in_the_navigation() -> None:
    navigation = in_navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(navigation) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES)


def test_every_command_is_in_the_table_of_commands() -> None:
    from promptnet.cli import COMMANDS

    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    known = [name for name, command in COMMANDS.items() if not isinstance(command, dict)]
    known += [f"{name} {what}" for name, command in COMMANDS.items() if isinstance(command, dict) for what in command]
    assert [name for name in known if f"| `promptnet {name}` |" not in page] == []


SOURCES = "\n".join(path.read_text("utf-8") for path in (ROOT / "promptnet").rglob("*.py"))
# Strings that go on in the next line, and the braces of f-strings, are joined before a message is looked up.
JOINED = re.sub(r"\{[^{}]*\}", "...", re.sub(r"[\"']\s*\n\s*f?[\"']", "", SOURCES))
JOINED += (ROOT / "Makefile").read_text("utf-8")


def messages() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8").partition("## Installation")[2]
    cells = re.findall(r"^\| (`.*?`) \|", page, re.M)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("message", messages())
def test_messages_of_the_help_page_are_the_codes_own(message: str) -> None:
    parts = [part.strip() for part in re.split(r"\.{3}", message)]
    assert [part for part in parts if part.strip(" :(),'=") and part not in JOINED] == []


def test_the_site_builds_strictly_and_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    loaded = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?https?://")
    assert [page.name for page in pages if loaded.search(page.read_text("utf-8"))] == []
    assert "PromptNetPipeline.customize" in (tmp_path / "site/api/index.html").read_text("utf-8")
