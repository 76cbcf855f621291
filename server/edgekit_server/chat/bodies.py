"""The body of a tool call, read as it comes: one reader per kind of call.

A reader takes text until it has `closed` or `failed`; `calls` then says what it held. Each
character is looked at once while it comes, and once more when the whole body is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from pydantic import JsonValue as Json

from .calls import Found, calls_in, loads
from .family import CallKind, Form
from .jsonscan import JsonScanner
from .pythonic import PythonicBody
from .xmlcall import FUNCTION, XmlBody

Offered = Mapping[str, Mapping[str, Json] | None]
"""The tools of the request: the schema of each one's arguments by name."""

MAX_HEAD = 512
"""Characters between the opening and the arguments; a tool's name has 256 at most."""
MAX_KEY = 64
"""Characters of a guessed call before its first colon."""
_FIRST_KEY = re.compile(
    r'[\[{\s]*"(?:name|arguments|parameters|type|function|id|tool)"\s*', re.DOTALL
)


class Body(Protocol):
    """One call, or one list of calls, being read."""

    @property
    def closed(self) -> bool:
        """Whether it has ended, and may be a call."""

    @property
    def failed(self) -> bool:
        """Whether it is no call."""

    def feed(self, text: str) -> int:
        """Take text; return how many characters belong to the body (all, unless it ended)."""

    def calls(self) -> list[Found]:
        """Return the calls of a closed body; an empty list if it is none."""


def reader(form: Form, marker: str, offered: Offered) -> Body:
    """Return what reads the body after an opening marker of a form."""
    if form.kind is CallKind.HEAD_THEN_JSON:
        return HeadBody(form.head)
    if form.kind is CallKind.PYTHONIC:
        if form.guess:
            return PythonicBody(offered)
        return EitherBody(PythonicBody(None), JsonBody("{", None))
    if form.kind is CallKind.XML:
        begun = marker.endswith(FUNCTION)
        tags = XmlBody(offered, begun=begun)
        return tags if begun else EitherBody(tags, JsonBody("{", None))
    opening = "[" if form.kind is CallKind.JSON_LIST else "{"
    return JsonBody(opening, offered if form.guess else None)


class HeadBody:
    """head {arguments}; the arguments stay as they were written."""

    def __init__(self, pattern: str, name: str | None = None) -> None:
        """`pattern` finds the name in the head; with `name` given the head is blank."""
        self.closed = self.failed = False
        self._pattern = pattern
        self._name = name or ""
        self._id = ""
        self._head: list[str] = []
        self._room = MAX_HEAD
        self._json: JsonScanner | None = None

    def feed(self, text: str) -> int:
        if self._json is not None:
            return self._arguments(text)
        brace = text.find("{")
        part = text[: min(self._room, brace if brace >= 0 else len(text))]
        self._head.append(part)
        self._room -= len(part)
        if len(part) == len(text):
            return len(text)
        if len(part) != brace or not self._named("".join(self._head)):
            self.failed = True
            return len(part)
        self._json = JsonScanner("{")
        return len(part) + self._arguments(text[len(part) :])

    def calls(self) -> list[Found]:
        text = self._json.text if self._json is not None else ""
        return [Found(self._name, self._id, text)] if isinstance(loads(text), dict) else []

    def _named(self, head: str) -> bool:
        if self._name:
            return not head.strip()
        found = re.fullmatch(self._pattern, head, re.DOTALL)
        groups = found.groupdict() if found else {}
        names = (text for key, text in groups.items() if key.startswith("name"))
        self._name = next((text.strip() for text in names if text), "")
        self._id = (groups.get("id") or "").strip()
        return bool(self._name)

    def _arguments(self, text: str) -> int:
        assert self._json is not None
        used = self._json.feed(text)
        self.closed, self.failed = self._json.closed, self._json.failed
        return used


class JsonBody:
    """{"name", "arguments"}, or a list of them."""

    def __init__(self, opening: str, offered: Offered | None) -> None:
        """`offered` None: the opening says that it is a call, whatever it names."""
        self._scanner = JsonScanner(opening)
        self._offered = offered
        self._room = MAX_KEY if offered is not None else 0
        """Characters left before the first colon must have come; 0: it has."""

    @property
    def closed(self) -> bool:
        return self._scanner.closed and not self._scanner.failed

    @property
    def failed(self) -> bool:
        return self._scanner.failed

    def feed(self, text: str) -> int:
        if not self._room:
            return self._scanner.feed(text)
        colon = text.find(":", 0, self._room)
        part = text[: self._room if colon < 0 else colon]
        used = self._scanner.feed(part)
        self._room -= used
        if used < len(part) or self._scanner.closed or self._scanner.failed:
            self._scanner.failed = True  # a value that is over before its first colon is no call
            return used
        if colon >= 0:
            self._room = 0
            if not _FIRST_KEY.fullmatch(self._scanner.text):
                self._scanner.failed = True
                return used
            return used + self._scanner.feed(text[used:])
        self._scanner.failed = not self._room
        return used

    def calls(self) -> list[Found]:
        calls = calls_in(loads(self._scanner.text))
        if self._offered is not None and not all(call.name in self._offered for call in calls):
            return []
        return calls


class EitherBody:
    """What a family writes, or one JSON object if that is what comes: the first character tells."""

    def __init__(self, usual: Body, json: Body) -> None:
        self._usual, self._json = usual, json
        self._body: Body | None = None

    @property
    def closed(self) -> bool:
        return self._body is not None and self._body.closed

    @property
    def failed(self) -> bool:
        return self._body is not None and self._body.failed

    def feed(self, text: str) -> int:
        blank = 0
        if self._body is None:
            blank = len(text) - len(text.lstrip())
            if blank == len(text):
                return blank
            self._body = self._json if text[blank] == "{" else self._usual
        return blank + self._body.feed(text[blank:])

    def calls(self) -> list[Found]:
        return self._body.calls() if self._body is not None else []
