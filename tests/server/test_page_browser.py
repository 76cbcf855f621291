"""The page in a real browser: it streams, stops, copies, asks for a key; everyone can use it."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from edgekit.report import to_json
from edgekit_server.app import Server
from tests.server.conftest import RULES
from tests.support.browser import launched, tab
from tests.support.http_server import config_for, running
from tests.support.latency_records import full_record
from tests.support.stub_engine import Rule, StubEngine, said

MARKUP = "<b>bold</b><img src=x onerror=alert(1)>"
UNAUTHORIZED = "401 (Unauthorized)"
TURN = """(state) => {
  Object.defineProperty(document, "visibilityState", {value: state, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
"""Bring the tab to the front, or send it back; coming to the front asks for the status at once."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.json"
    path.write_text(json.dumps(to_json(replace(full_record(), model="tiny"))))
    return path


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> StubEngine:
    rules = [Rule("markup", said(MARKUP)), *RULES]
    return StubEngine(rules, tmp_path_factory.mktemp("stub") / "stub.log")


@pytest.fixture(scope="module")
def server(stub: StubEngine, gguf: Path, report: Path) -> Iterator[Server]:
    with running(config_for(gguf, report=report), stub.spawn) as found:
        yield found


@pytest.fixture(scope="module")
def keyed(stub: StubEngine, gguf: Path) -> Iterator[Server]:
    with running(config_for(gguf, api_keys=("secret",)), stub.spawn) as found:
        yield found


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    with tab(browser, server.url) as found:
        found.wait_for_selector("#rest:not([hidden])")
        yield found


def _until(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def _shows(page: Any, selector: str, text: str) -> None:
    node = page.locator(selector)
    _until(lambda: text in node.inner_text(), f"{selector} has {node.inner_text()!r}, not {text!r}")


def _chat(page: Any, text: str) -> None:
    page.fill("#chat-text", text)
    page.press("#chat-text", "Enter")


def _idle(server: Server) -> bool:
    return bool(server.app.state.router.client.in_flight == 0)


def test_the_verdict_comes_first(page: Any) -> None:
    assert page.locator("h1:visible").all_inner_texts() == ["tiny is ready"]
    assert page.title() == "tiny is ready · edgekit"
    assert "2,048 tokens of context" in page.inner_text("#lead")
    assert "NVIDIA A10" in page.inner_text("#lead")


def test_predicted_stands_beside_measured(page: Any) -> None:
    assert "within its error bar" in page.inner_text("#report-body")
    row = page.locator("#report-body tbody tr").first.locator("th, td").all_inner_texts()
    assert row[0] == "1"
    assert "33 ± 3" in row
    assert "31.8" in row


def test_an_answer_streams_and_the_next_one_knows_it(page: Any, server: Server) -> None:
    bodies: list[Any] = []
    page.on("request", lambda r: bodies.append(r.post_data_json) if r.method == "POST" else None)
    _chat(page, "count")
    _shows(page, "#chat-log", "one two three four")
    _shows(page, "#chat-status", "18 tokens")
    _chat(page, "and count again")
    _until(lambda: len(page.locator(".turn").all()) == 4, "two turns")
    _shows(page, "#chat-status", "18 tokens")
    assert [m["content"] for m in bodies[1]["messages"]] == [
        "count", "one two three four", "and count again",
    ]  # fmt: skip
    page.click("#chat-new")
    assert not page.is_visible("#chat-log")


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_cancels_in_the_engine(page: Any, server: Server, how: str) -> None:
    _chat(page, "long")
    text = page.locator(".turn.model .text")
    _shows(page, ".turn.model .text", "xx")
    before = len(text.inner_text())
    _until(lambda: len(text.inner_text()) > before, "more text while it streams")
    assert not _idle(server)
    if how == "button":
        page.click("#chat-stop")
    else:
        page.press("#chat-text", "Escape")
    _shows(page, "#chat-status", "Stopped.")
    _until(lambda: _idle(server), "the engine lets go")
    assert page.is_enabled("#chat-send")
    assert page.evaluate("document.activeElement.id") == "chat-text"


def test_what_a_model_writes_is_text(page: Any) -> None:
    _chat(page, "markup")
    _shows(page, ".turn.model .text", MARKUP)
    _until(lambda: page.is_enabled("#chat-send"), "the end")
    assert page.locator(".turn b, .turn img").count() == 0


def test_reasoning_is_kept_apart(page: Any) -> None:
    _chat(page, "think")
    _shows(page, ".turn.model > .text", "yes")
    assert page.locator(".turn details .text").text_content() == "hm"


@pytest.mark.parametrize(("text", "said"), [("dies later", "engine died"), ("fails", "")])
def test_a_torn_answer_says_so(browser: Any, server: Server, text: str, said: str) -> None:
    with tab(browser, server.url) as page:
        page.wait_for_selector("#rest:not([hidden])")
        _chat(page, text)
        _until(lambda: page.locator(".turn [role=alert]").count() == 1, "the error")
        assert said in page.inner_text(".turn [role=alert]")
        assert page.input_value("#chat-text") == text
        assert page.is_enabled("#chat-send")
    _until(lambda: server.app.state.router.client.state == "ready", "the engine comes back")


def test_a_refusal_says_why(browser: Any, server: Server) -> None:
    with tab(browser, server.url, expected="429") as page:
        page.wait_for_selector("#rest:not([hidden])")
        _chat(page, "crowded")
        _until(lambda: page.locator(".turn [role=alert]").count() == 1, "the error")
        assert page.locator(".turn.unanswered").count() == 1


def test_fill_in_the_middle(page: Any, server: Server) -> None:
    page.fill("#fim-prefix", "count")
    page.press("#fim-prefix", "Control+Enter")
    _shows(page, "#fim-out", "one two three four")
    _shows(page, "#fim-status", "18 tokens")
    page.click("#fim-take")
    assert page.input_value("#fim-prefix") == "countone two three four"
    assert page.inner_text("#fim-out") == ""
    page.fill("#fim-prefix", "long")
    page.click("#fim-run")
    _shows(page, "#fim-out", "xx")
    page.click("#fim-stop")
    _shows(page, "#fim-status", "Stopped.")
    _until(lambda: _idle(server), "the engine lets go")


def test_settings_are_ready_to_copy(page: Any, server: Server) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    names = page.locator("#client option").all_inner_texts()
    assert len(names) == 17
    for name in names:
        page.select_option("#client", name)
        texts = page.locator("#settings pre").all_inner_texts()
        assert any(server.url in text for text in texts), name
        for text in texts:
            if text.startswith(("{", "[")):
                json.loads(text)
    page.select_option("#client", "Codex")
    page.locator("#settings button").last.click()
    _shows(page, "#copied", "Copied: ~/.codex/config.toml")
    copied = tomllib.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied["model"] == "tiny"
    assert copied["model_providers"]["edgekit"]["base_url"] == f"{server.url}/v1"
    assert "needs a context of 16,384" in page.inner_text("#settings")


def test_the_page_knows_each_client_that_connect_knows() -> None:
    script = files("edgekit_server").joinpath("web", "clients.js").read_text()
    known = {item.name for item in files("edgekit_profiles").joinpath("clients").iterdir()}
    assert known
    for name in known:
        if name.endswith(".toml"):
            assert f'"{name.removesuffix(".toml")}"' in script, name


def test_a_key_is_asked_for_and_stays_in_the_tab(browser: Any, keyed: Server) -> None:
    with tab(browser, keyed.url, expected=UNAUTHORIZED) as page:
        page.wait_for_selector("#gate:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "gate-key"
        assert not page.is_visible("#page")
        page.fill("#gate-key", "wrong")
        page.press("#gate-key", "Enter")
        _shows(page, "#gate-error", "does not take that key")
        assert page.evaluate("sessionStorage.length") == 0
        page.fill("#gate-key", "secret")
        page.press("#gate-key", "Enter")
        page.wait_for_selector("#rest:not([hidden])")
        assert page.evaluate("Object.values(sessionStorage)") == ["secret"]
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []
        _chat(page, "count")
        _shows(page, "#chat-status", "18 tokens")
        assert "secret" not in page.content()
        assert "YOUR_KEY" in page.inner_text("#settings")
        page.check("#show-key")
        assert "secret" in page.inner_text("#settings")
        page.reload()
        page.wait_for_selector("#rest:not([hidden])")
        other = page.context.new_page()
        other.goto(f"{keyed.url}/")
        other.wait_for_selector("#gate:not([hidden])")
        page.click("#forget")
        page.wait_for_selector("#gate:not([hidden])")
        assert page.evaluate("sessionStorage.length") == 0


def test_silence_is_said_and_ends(browser: Any, server: Server) -> None:
    with tab(browser, server.url, expected="ERR_FAILED") as page:
        page.wait_for_selector("#rest:not([hidden])")
        page.route("**/status", lambda route: route.abort())
        page.evaluate(TURN, "visible")
        _shows(page, "#verdict", "The server does not answer")
        page.unroute("**/status")
        page.evaluate(TURN, "visible")
        _shows(page, "#verdict", "tiny is ready")


def test_a_hidden_page_asks_nothing(page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(TURN, "hidden")
    page.wait_for_timeout(100)
    asked.clear()
    page.wait_for_timeout(2300)
    assert asked == []
    page.evaluate(TURN, "visible")
    _until(lambda: page.wait_for_timeout(10) or asked, "it asks again")


def test_nothing_is_wider_than_the_screen(page: Any) -> None:
    _chat(page, "limit " + "w" * 300)
    _shows(page, "#chat-status", "4 tokens")
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    names = page.locator("#client option").all_inner_texts()
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 900})
        for name in names:
            page.select_option("#client", name)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)


def test_the_keyboard_reaches_everything(page: Any) -> None:
    seen: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate("""() => {
          const at = document.activeElement;
          const style = getComputedStyle(at);
          return [at.id || at.textContent.trim(), style.outlineStyle, at.tagName];
        }""")
        if found[2] == "BODY":
            break
        assert found[1] != "none", found
        seen.append(found[0])
    assert seen[0] == "Skip to the content"
    wanted = ["chat-text", "chat-send", "fim-prefix", "fim-suffix", "fim-run", "client", "Copy"]
    assert [name for name in seen if name in wanted][: len(wanted)] == wanted
    page.keyboard.press("Home")
    page.focus(".skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_axe_finds_nothing(page: Any) -> None:
    _chat(page, "think")
    _shows(page, "#chat-status", "tokens")
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for width, scheme in ((1280, "light"), (320, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert _axe(page) == []


def test_axe_finds_nothing_where_the_key_is_asked_for(browser: Any, keyed: Server) -> None:
    with tab(browser, keyed.url, expected=UNAUTHORIZED) as page:
        page.wait_for_selector("#gate:not([hidden])")
        page.fill("#gate-key", "wrong")
        page.press("#gate-key", "Enter")
        _shows(page, "#gate-error", "does not take")
        assert _axe(page) == []


def _axe(page: Any) -> list[str]:
    """Return what axe-core finds, best practices included."""
    found = pytest.importorskip("axe_playwright_python.sync_playwright").Axe().run(page).response
    return [
        f"{item['id']}: {item['help']}: {node['html'][:120]} {node['failureSummary']}"
        for item in found["violations"]
        for node in item["nodes"]
    ]
