"""A headless Chromium with a watch on it: nothing goes wrong unseen, nothing goes elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip


def executable() -> str:
    """Return the browser (EDGEKIT_TEST_CHROMIUM names another one), or skip the test."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    given = os.environ.get("EDGEKIT_TEST_CHROMIUM")
    found = given or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """Run one browser."""
    path = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def tab(browser: Any, url: str, *, expected: str = "no error") -> Iterator[Any]:
    """Open a page in a profile of its own; in the end, its console and requests are checked.

    `expected` is part of the console errors that the test provokes.
    """
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    context.set_default_timeout(10_000)
    wrong: list[str] = []
    asked: list[str] = []

    def watch(page: Any) -> None:
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else 0)
        page.on("pageerror", lambda error: wrong.append(str(error)))

    context.on("page", watch)
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.goto(f"{url}/")
    try:
        yield page
    finally:
        context.close()
    assert [text for text in wrong if expected not in text] == []
    assert [place for place in asked if not place.startswith((f"{url}/", "data:"))] == []
