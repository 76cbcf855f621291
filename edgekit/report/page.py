"""The frame of a page that asks the network for nothing: policy, style, a small script."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from edgekit.report.markup import Markup, element


def page(title: str, body: Markup, footer: str, *, script: bool) -> str:
    """Return the whole page, UTF-8 text that starts with the doctype.

    The policy lets this very script run and nothing else; without scripts the page is complete,
    it only cannot be filtered.
    """
    code = _file("fit.js") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    runs = f"script-src 'sha256-{digest}'; " if script else ""
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; {runs}base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(_file("style.css") + _file("fit.css"))),
    )
    content = element(
        "body",
        element("main", body),
        element("footer", footer),
        element("script", Markup(code)) if script else None,
        class_="wide",
    )
    return "<!doctype html>\n" + element("html", head, content, lang="en") + "\n"


def _file(name: str) -> str:
    return files("edgekit.report").joinpath(name).read_text(encoding="utf-8")
