"""What of an answer is shown: text up to a stop string, reasoning, calls, in order."""

from __future__ import annotations

from collections.abc import Sequence

from .events import Event, ReasoningText, Text, merge
from .scan import Scanner


class Outlet:
    """Collects events. Holds back half stop strings, and what may belong to the format.

    `trim`: line breaks around reasoning and calls are the format's, so those at the end of what
    was shown wait for what follows.
    """

    def __init__(self, stop: Sequence[str], *, trim: bool) -> None:
        self._stop = Scanner(stop)
        self._trim = trim
        self._events: list[Event] = []
        self._gap = ""
        """Line breaks at the end of what was shown: text if text follows."""
        self._skip = ""
        """Characters that are left out until others come."""
        self.said = False
        """Whether any text but white space was shown."""
        self.stopped_by: str | None = None

    def take(self) -> list[Event]:
        """Return the events since the last time, merged."""
        events, self._events = self._events, []
        return merge(events)

    def add(self, event: Event) -> None:
        self._events.append(event)

    def skip(self, chars: str) -> None:
        """Leave such characters out until others come, if the family trims at all."""
        self._skip = chars if self._trim else ""

    def drop(self, *, was_text: bool) -> None:
        """Something else begins: show what may be shown, forget the line breaks before it."""
        if was_text:
            self._show(self._stop.flush())
        self._gap = ""

    def end(self, *, was_text: bool) -> None:
        """The answer ends: nothing is held back any more."""
        if was_text:
            self._show(self._stop.flush())
        if self._gap:
            self._events.append(Text(self._gap) if was_text else ReasoningText(self._gap))
        self._gap = ""

    def text(self, text: str) -> bool:
        """Take text that the client sees; return whether a stop string has ended it."""
        text = self._begun(text)
        if not text:
            return False
        self.said = self.said or not text.isspace()
        scan = self._stop.feed(text)
        self._show(scan.text)
        if scan.match is None:
            return False
        self.stopped_by = scan.match
        self.end(was_text=True)
        return True

    def reasoning(self, text: str) -> None:
        """Take reasoning; stop strings do not count in it."""
        if text := self._held_back(self._begun(text)):
            self._events.append(ReasoningText(text))

    def _show(self, text: str) -> None:
        if text := self._held_back(text):
            self._events.append(Text(text))

    def _begun(self, text: str) -> str:
        if self._skip and (text := text.lstrip(self._skip)):
            self._skip = ""
        return text

    def _held_back(self, text: str) -> str:
        """Return what to show now."""
        if not self._trim:
            return text
        body = text.rstrip("\n")
        if not body:
            self._gap += text
            return ""
        shown, self._gap = self._gap + body, text[len(body) :]
        return shown
