"""The page's files: open to everybody, closed to everything that is not theirs."""

import json
import re
from pathlib import Path

import pytest

from promptnet.serve.page import FOLDER, POLICY, TYPES
from tests.serve.conftest import Running, User

PATHS = {name: "/" if name == "index.html" else f"/web/{name}" for name in TYPES}
SCRIPTS = [name for name in TYPES if name.endswith(".js")]
IMPORT = re.compile(r'^import \{ (.+) \} from "\./(\w+\.js)";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?:async function|function|const|class) ([$\w]+)", re.MULTILINE)


def script_of(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def code_of(script: str) -> str:
    """Return a script without comments and quoted texts."""
    script = re.sub(r"/\*.*?\*/|(?<=\s)//[^\n]*", "", script, flags=re.DOTALL)
    return re.sub(r'"[^"\n]*"', '""', script)


@pytest.mark.parametrize("name", TYPES)
def test_files_are_answered_without_a_key_under_a_strict_policy(running: Running, name: str) -> None:
    answer = running.client.get(PATHS[name])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == TYPES[name]
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"


def test_the_policy_lets_nothing_from_elsewhere_in() -> None:
    rules = {name: value for name, _, value in (rule.strip().partition(" ") for rule in POLICY.split(";"))}
    assert rules["default-src"] == "'self'"
    assert rules["img-src"] == "'self' blob:"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["object-src"] == "'none'"
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


def test_the_folder_holds_these_files_alone() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(TYPES)


def test_other_names_are_not_open(running: Running, user: User) -> None:
    for path in ("/web/", "/web/index.html", "/web/nothing.js", "/web/..%2Fapp.py", "/web/app.js/x"):
        assert running.client.get(path).status_code == 401, path
        assert user.call("GET", path).status_code == 404, path


def test_the_page_asks_for_its_own_files_alone_and_has_no_script_inside() -> None:
    page = (FOLDER / "index.html").read_text("utf-8")
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"web/icon.svg", "web/style.css", "web/app.js"}
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", page)


@pytest.mark.parametrize("name", [*SCRIPTS, "style.css", "index.html"])
def test_no_file_names_another_place(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8")
    assert not re.search(r"https?:|@import|url\(", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_make_no_markup_of_text(name: str) -> None:
    script = (FOLDER / name).read_text("utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|localStorage", script
    )


def test_every_id_that_the_script_uses_is_on_the_page() -> None:
    page, script = (FOLDER / "index.html").read_text("utf-8"), "".join(map(script_of, SCRIPTS))
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    assert set(re.findall(r'\$\("([^"]+)"\)', script)) <= ids
    named = re.findall(r'\b(?:for|aria-labelledby|aria-describedby|list)="([^"]+)"', page)
    assert {name for names in named for name in names.split()} <= ids


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_module_imports_all_that_it_uses_and_nothing_else(name: str) -> None:
    """Without a build nobody else would say so before somebody presses the button."""
    exported = {other: set(EXPORT.findall(script_of(other))) for other in SCRIPTS}
    imported = {name for names, other in IMPORT.findall(script_of(name)) for name in names.split(", ")}
    for names, other in IMPORT.findall(script_of(name)):
        assert set(names.split(", ")) <= exported[other]
    body = IMPORT.sub("", script_of(name))
    own = set(re.findall(r"(?:const|let|class|function) ([$\w]+)", body))
    known = set.union(*exported.values()) - own
    begins = r"(?<![\w$\"-])(?<!(?<!\.\.)\.)"  # no part of a word and no field, but what is spread
    used = {word for word in known if re.search(rf"{begins}{re.escape(word)}(?=[(.,;)\s])", code_of(body))}
    assert used == imported


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    left = {name: {other for _, other in IMPORT.findall(script_of(name))} for name in SCRIPTS}
    while free := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


def test_the_session_says_that_a_key_is_needed(running: Running, user: User) -> None:
    assert user
    assert running.client.get("/web/session").json() == {"ready": True, "local": False, "open": False}


def test_the_page_knows_what_the_model_is_told_by_default(user: User) -> None:
    model = user.call("GET", "/v1/models").json()["data"][0]
    told = json.loads(Path("checkpoints/tiny/model_index.json").read_text("utf-8"))["sampling"]
    assert model["sampling"]["subject_scale"] == told["subject_scale"]
    assert model["sampling"]["class_scale"] == told["class_scale"]
