"""Reads the answer to a FIM prompt: plain text that ends at any control token or dedent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .family import PLAIN
from .parser import Event, Parser, Text


class Middle(Parser):
    """Text until the model opens or closes anything: a middle has no structure of its own.

    This is every family's stop list at once (pad, file separator, repository, end of text, the
    FIM tokens themselves); texts that open another file come in `stop`.
    """

    def __init__(self, *, stop: Sequence[str] = (), n_indent: int = 0) -> None:
        """`n_indent`: white space that each line after the first must begin with."""
        super().__init__(PLAIN, stop=stop, tools=False)
        self._indent = Indent(n_indent) if n_indent > 0 else None
        self.ended_by_token = False
        """A control token ended it: to a client that is the end of the answer, not a limit."""
        self.dedented = False
        """It ended at a line with too little white space in front."""

    def feed(self, pieces: Iterable[tuple[bytes, bool]]) -> list[Event]:
        """Take (bytes, is control token) pieces; return what can be shown now."""
        events: list[Event] = []
        for piece in pieces:
            if self.done:
                break
            if piece[1]:
                events += self._end()
                self.ended_by_token = True
            else:
                events += self._dented(super().feed([piece]))
        return events

    def finish(self) -> list[Event]:
        """Return what was held back."""
        events = self._dented(super().finish())
        if self._indent is not None and (held := self._indent.flush()):
            events.append(Text(held))
        return events

    def _end(self) -> list[Event]:
        events = self.finish()
        self.done_early = True
        return events

    def _dented(self, events: list[Event]) -> list[Event]:
        if self._indent is None:
            return events
        kept: list[Event] = []
        for item in events:
            text = self._indent.feed(item.text) if isinstance(item, Text) else ""
            if text:
                kept.append(Text(text))
        if self._indent.ended and not self.dedented:
            self.dedented = self.done = self.done_early = True
        return kept


class Indent:
    """Ends a text before its first line, the opening one aside, that is indented too little.

    llama-server's `n_indent`; there the cut line's white space stays, here the text ends with the
    line before it.
    """

    def __init__(self, least: int) -> None:
        """`least`: characters of white space, at least 1."""
        self._least = least
        self._held = ""
        """A line break and the white space after it, which may yet turn out too little."""
        self.ended = False

    def feed(self, text: str) -> str:
        """Return what of the text may be shown by now."""
        shown: list[str] = []
        for char in text:
            if self.ended:
                break
            if not self._held:
                if char == "\n":
                    self._held = char
                else:
                    shown.append(char)
            elif char in " \t":
                self._held += char
            elif len(self._held) - 1 < self._least:
                self.ended = True
                self._held = ""
            else:
                shown.append(self._held)
                self._held = "\n" if char == "\n" else ""
                if not self._held:
                    shown.append(char)
        return "".join(shown)

    def flush(self) -> str:
        """The text has ended: return what was held back."""
        held, self._held = self._held, ""
        return held
