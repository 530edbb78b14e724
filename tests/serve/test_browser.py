"""The page in a real browser, Debian's chromium: from a picture to a deleted person, with the keyboard and at 360 px.

axe-core is installed from npm into a temporary folder. Screenshots are written to PROMPTNET_SCREENSHOTS, if it is set.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from tests.serve.conftest import ROOT, Running, User
from tests.serve.processes import free_port

pytestmark = pytest.mark.slow

CHROMIUM = "/usr/bin/chromium"
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGS += ["--disable-background-networking", "--disable-component-update"]
_CLI = "import sys; from promptnet.cli import main; sys.exit(main())"
_LONG_MS = 240_000


@dataclass
class Visit:
    """A tab, and everything it asked for and complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(_LONG_MS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def shown(self, name: str) -> None:
        """Keep a screenshot, where somebody wants to look at it."""
        if folder := os.environ.get("PROMPTNET_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def check_quiet(self) -> None:
        """Nothing left this machine, and the console is empty."""
        places = {urlsplit(url).hostname for url in self.requests if urlsplit(url).scheme not in ("blob", "data")}
        assert places == {"127.0.0.1"}
        assert self.complaints == []


@pytest.fixture(scope="module")
def browser(running: Running) -> Iterator[Any]:
    """Started after the service in this process: playwright's loop would forbid that."""
    from playwright.sync_api import sync_playwright

    assert Path(CHROMIUM).exists(), "this test needs Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    folder, npm = tmp_path_factory.mktemp("axe"), shutil.which("npm")
    assert npm, "this test needs npm, which installs axe-core into a temporary folder"
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), "axe-core@4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"axe-core could not be installed from npm: {done.stderr[-500:]}"
    return (folder / "node_modules/axe-core/axe.min.js").read_text("utf-8")


def check_accessible(visit: Visit, axe: str) -> None:
    """No rule of axe is broken seriously. The policy of the page lets no script in but through the debugger."""
    visit.page.evaluate(axe)
    found = visit.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [
        (rule["id"], [node["html"] for node in rule["nodes"]])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == []


@dataclass
class Ui:
    """`promptnet ui` as a process."""

    address: str
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    data = tmp_path_factory.mktemp("ui") / "data"
    words = ["ui", "--no-browser", "--data", str(data), "--port", str(free_port()), "--threads", "1"]
    process = subprocess.Popen([sys.executable, "-c", _CLI, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found
    yield Ui(found[0], process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (0, 130)


@pytest.fixture
def visit(browser: Any, ui: Ui) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    visit = Visit(context.new_page())
    visit.page.goto(ui.address)
    visit.page.wait_for_selector("#room:not([hidden])")
    yield visit
    visit.page.evaluate("fetch('v1/me', {method: 'DELETE'}).then(answer => answer.json())")  # nothing for the next
    context.close()


def drawn(page: Any, count: int) -> None:
    """Wait for so many pictures, each with its pixels. A function, since the page's policy evaluates no text."""
    page.wait_for_function(
        "count => { const all = [...document.querySelectorAll('.result:not(.pending) img')];"
        " return all.length === count && all.every(image => image.complete && image.naturalWidth === 64); }",
        arg=count,
    )


def ask_for(page: Any, words: str, count: str = "1", **more: str) -> None:
    page.fill("#prompt", words)
    page.evaluate("document.getElementById('more').open = true")
    page.select_option("#count", count)
    for name, value in more.items():
        page.fill(f"#{name}", value)
    page.click("#draw")


def test_a_person_is_added_drawn_edited_and_deleted(visit: Visit, axe: str) -> None:
    page = visit.page
    assert "token" not in page.url
    check_accessible(visit, axe)
    visit.shown("empty-1280")

    page.click("#draw")
    assert "add a picture" in page.inner_text("#prompt-problem")
    page.click("#example")
    page.click("text=Learn this face")
    assert "Tick the box" in page.inner_text("#consent-problem")
    page.check("#consent")
    check_accessible(visit, axe)
    page.click("text=Learn this face")
    page.wait_for_selector("#curve:not([hidden])")
    assert page.get_attribute("#curve .held-out", "d").startswith("M")
    assert re.match(r"step \d+ of \d+", page.inner_text("#learning-state"))
    visit.shown("learning-1280")
    page.wait_for_selector(".subject img[src^='blob:']")
    assert page.evaluate("document.activeElement.id") == "prompt"

    page.keyboard.type("make yourself sad, in sunglasses, on pink")
    assert "a sad portrait of S*, in sunglasses, on a pink background" in page.inner_text("#reads")
    page.keyboard.press("Enter")
    page.wait_for_selector(".pending")
    drawn(page, 4)
    check_accessible(visit, axe)
    visit.shown("drawn-1280")

    page.locator(".result >> text=Vary").nth(1).click()
    seed = page.locator(".result .seed").nth(1).inner_text().removeprefix("seed ")
    assert page.input_value("#seed") == seed
    page.click("#more summary")
    page.locator(".edit", has_text="happy").locator("input[type=checkbox]").check()
    page.locator(".edit", has_text="happy").locator("input[type=range]").fill("0.5")
    page.click("#draw")
    drawn(page, 5)
    newest = page.locator(".result").first
    assert newest.locator(".seed").inner_text() == f"seed {seed} · happy 50%"
    visit.shown("edited-1280")

    newest.locator("text=Again").click()
    drawn(page, 6)
    assert f"seed {seed}" not in page.locator(".result .seed").first.inner_text()

    page.reload()
    drawn(page, 6)
    page.locator(".result >> text=Delete").first.click()
    page.click("#ask-yes")
    drawn(page, 5)

    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    check_accessible(visit, axe)
    visit.shown("drawn-360")
    page.emulate_media(color_scheme="dark")
    check_accessible(visit, axe)
    page.set_viewport_size({"width": 1280, "height": 900})
    visit.shown("dark-1280")

    page.locator(".subject button").click()
    page.wait_for_selector("#ask[open]")
    assert "5 pictures of them" in page.inner_text("#ask-list")
    check_accessible(visit, axe)
    visit.shown("delete-1280")
    page.click("#ask-yes")
    page.wait_for_selector(".subject", state="detached")
    assert page.locator(".result").count() == 0
    visit.check_quiet()


def test_drawings_and_learnings_can_be_canceled(visit: Visit) -> None:
    page = visit.page
    page.click("#example")
    page.check("#consent")
    page.click("text=Learn this face")
    page.click("#cancel-learning")
    page.wait_for_selector("#subject-form:not([hidden])")
    assert page.locator(".subject").count() == 0
    page.click("text=More settings")
    page.uncheck("#tune")
    page.click("text=Learn this face")
    page.wait_for_selector(".subject")
    ask_for(page, "sad", count="4", steps="200")
    page.click(".pending >> text=Cancel")
    page.wait_for_selector(".pending", state="detached")
    assert page.locator(".result").count() == 0
    page.click("#open-data")
    page.wait_for_function("() => document.getElementById('data-counts').textContent.includes('1 person')")
    page.click("#delete-all")
    page.click("#ask-yes")
    page.wait_for_selector(".subject", state="detached")
    visit.check_quiet()


def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    page = visit.page

    def tab_to(test: str) -> None:
        for _ in range(60):
            if page.evaluate(f"document.activeElement.matches({test!r})"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(test)

    tab_to("#example")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'consent'")
    page.keyboard.press("Space")
    tab_to("summary")
    page.keyboard.press("Enter")
    tab_to("#tune")
    page.keyboard.press("Space")
    tab_to("#subject-form .primary")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'prompt'")
    page.keyboard.type("happy")
    tab_to("#more summary")
    page.keyboard.press("Enter")
    tab_to("#count")
    page.keyboard.press("Home")
    tab_to("#draw")
    page.keyboard.press("Enter")
    drawn(page, 1)
    tab_to(".result button[aria-label^=Delete]")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.value === 'no'")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    drawn(page, 0)
    assert page.evaluate("document.activeElement.id") == "prompt"
    visit.check_quiet()


def test_errors_appear_where_they_arise(visit: Visit) -> None:
    page = visit.page
    page.click("#example")
    page.check("#consent")
    page.click("text=More settings")
    page.uncheck("#tune")
    page.click("text=Learn this face")
    page.wait_for_selector(".subject")
    ask_for(page, "sad", seed="a few")
    assert "whole number" in page.inner_text("#more-problem")
    ask_for(page, "S* and S2*", seed="1")
    page.wait_for_selector("#prompt-problem:not([hidden])")
    assert "S2*" in page.inner_text("#prompt-problem")
    ask_for(page, "in a very long hat " * 60 + "S*")
    page.wait_for_selector(".result .problem:not([hidden])")
    assert "cut off" in page.inner_text(".result .problem")
    page.click(".result >> text=Dismiss")
    assert page.locator(".result").count() == 0


@pytest.fixture
def hosted(running: Running) -> Iterator[str]:
    config = uvicorn.Config(running.app, port=free_port(), lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{config.port}/"
    server.should_exit = True
    thread.join(10)


def test_the_hosted_page_asks_for_a_key_and_keeps_it_for_the_tab(
    browser: Any, hosted: str, user: User, axe: str
) -> None:
    user.subject()
    context = browser.new_context(viewport={"width": 360, "height": 740})
    visit = Visit(context.new_page())
    page = visit.page
    page.goto(hosted)
    page.wait_for_selector("#door:not([hidden])")
    check_accessible(visit, axe)
    visit.shown("door-360")
    page.fill("#key", user.secret)
    page.keyboard.press("Enter")
    page.wait_for_selector(".subject")
    page.reload()
    page.wait_for_selector(".subject")
    visit.check_quiet()
    other = context.new_page()
    other.goto(hosted)
    other.wait_for_selector("#door:not([hidden])")
    other.fill("#key", "pn_wrong")
    other.keyboard.press("Enter")
    other.wait_for_selector("#key-form .problem:not([hidden])")
    assert "not known" in other.inner_text("#key-form .problem")
    assert user.secret not in str(context.storage_state())
    context.close()
