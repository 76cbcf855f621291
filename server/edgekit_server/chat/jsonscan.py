"""Find the end of a JSON object or list in text that comes in pieces. Each character once."""

from __future__ import annotations

import re

MAX_DEPTH = 200
"""Deeper nesting is refused: no tool needs it and json.loads would overflow its stack."""

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')


class JsonScanner:
    """Counts brackets outside strings; whether the text is valid JSON is json.loads's to say."""

    def __init__(self, opening: str) -> None:
        """`opening` is the bracket that must come first, after white space."""
        self._opening = opening
        self._parts: list[str] = []
        self._stack: list[str] = []
        self._in_string = False
        self._escaped = False
        self._started = False
        self.closed = False
        self.failed = False

    @property
    def text(self) -> str:
        """The JSON text so far, without white space before it."""
        return "".join(self._parts)

    def feed(self, text: str) -> int:
        """Take text; return how many characters belong to the value (all, unless it closed).

        On failure the count includes the character that broke it, so a caller gets on.
        """
        at = 0
        if not self._started:
            at = len(text) - len(text.lstrip())
            if at == len(text):
                return at
            if text[at] != self._opening:
                self.failed = True
                return at
            self._started = True
        start = at
        while at < len(text) and not (self.closed or self.failed):
            at = self._string(text, at) if self._in_string else self._outside(text, at)
        self._parts.append(text[start:at])
        return at

    def _outside(self, text: str, at: int) -> int:
        hit = _OUTSIDE.search(text, at)
        if hit is None:
            return len(text)
        char = hit.group()
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._stack.append("}" if char == "{" else "]")
            self.failed = len(self._stack) > MAX_DEPTH
        elif self._stack[-1] != char:
            self.failed = True
        else:
            self._stack.pop()
            self.closed = not self._stack
        return hit.end()

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        hit = _INSIDE.search(text, at)
        if hit is None:
            return len(text)
        if hit.group() == "\\":
            self._escaped = True
        else:
            self._in_string = False
        return hit.end()
