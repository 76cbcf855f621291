"""Tokens to events, one pass: text, reasoning and tool calls, whatever the chunks.

Pure, and driven by a family's spec. Holds back half UTF-8 characters, half markers, half stop
strings, and a tool call until it is whole: a call that does not parse is then still the text that
it was, never a broken call. Amortised O(1) per token: text goes through one scanner for its
region's markers, then through the one for stop strings, and nothing is read again.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto

from .bodies import MAX_HEAD, Body, HeadBody, Offered, reader
from .events import ID_LETTERS as ID_LETTERS
from .events import ID_PATTERN as ID_PATTERN
from .events import Event as Event
from .events import ReasoningText as ReasoningText
from .events import Text as Text
from .events import ToolCall as ToolCall
from .events import merge as merge
from .events import new_call_id as new_call_id
from .family import Channels, Form, Spec
from .outlet import Outlet
from .table import CHANNEL_CALL, table_of


class _Region(Enum):
    TEXT = auto()
    REASONING = auto()
    CALL = auto()
    AFTER = auto()
    """A call has ended; its closing marker may follow."""
    HEADER = auto()
    """Of a message in a channel."""


class Parser:
    """One answer being read. `feed` until `done`, then `finish` once."""

    def __init__(
        self,
        spec: Spec,
        *,
        stop: Sequence[str] = (),
        tools: bool = True,
        offered: Offered | None = None,
        max_calls: int | None = None,
        in_reasoning: bool = False,
        call_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`tools` False: call markers are shown as text. `in_reasoning`: the prompt opened it.

        `offered`: the tools by name, with the schemas of their arguments. Without it, only what
        a marker opens is a call.
        """
        self._spec = spec
        self._tools = tools
        self._offered: Offered = offered or {}
        self._table = table_of(spec, tools=tools, guess=bool(offered))
        self._out = Outlet(stop, trim=spec.trim)
        self._max_calls = max_calls
        self._new_id = call_id
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._region = _Region.TEXT
        self._marks = self._table.in_text.fresh()
        self._line = True
        """Nothing but white space since the start of a line that may begin a call."""
        self._owed = False
        """A call cut reasoning short: its closing marker may still come."""
        self._back = _Region.TEXT
        self._form: Form | None = None
        self._body: Body | None = None
        self._raw: list[str] = []
        self._n_raw = 0
        self._opened = False
        """Whether a marker, or a recipient, has shown that this is a header."""
        if spec.channels is not None:
            self._begin_header(opened=False)
        if in_reasoning and spec.reasoning is not None:
            self._enter(_Region.REASONING)
        self.n_calls = 0
        self.stopped_by: str | None = None
        """The stop string that ended the answer."""
        self.done = False
        """Nothing that follows matters; the engine may be told to stop."""
        self.done_early = False
        """`done` came from a stop string or the call limit, before the engine's own end."""

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._region is _Region.REASONING

    def feed(self, pieces: Iterable[tuple[bytes, bool]]) -> list[Event]:
        """Take (bytes, is control token) pieces; return what can be shown now."""
        for data, is_control in pieces:
            if self.done:
                break
            if is_control:
                self._text(self._decoder.decode(b"", True))
                self._decoder.reset()
                if not self.done:
                    self._control(data.decode("utf-8", "replace"))
            else:
                self._text(self._decoder.decode(data))
        return self._out.take()

    def finish(self) -> list[Event]:
        """The answer has ended: return what was held back. An unfinished call becomes text."""
        if not self.done:
            self._text(self._decoder.decode(b"", True))
        if not self.done:
            self._settle()
        if not self.done:
            self._out.end(was_text=self._region is not _Region.REASONING)
        self.done = True
        return self._out.take()

    # Markers

    def _control(self, marker: str) -> None:
        """A control token: a marker, or the model's own business and not shown."""
        if self._region is _Region.CALL and self._form and marker in self._form.inner:
            self._text(marker)
        elif self._region is _Region.AFTER and self._form and marker in self._form.close:
            self._settle()
            self._region = _Region.AFTER
        elif marker in self._table.marks:
            if not self._goes_on(marker):
                self._settle()
            if not self.done:
                self._mark(marker, real=True)
        elif marker in self._table.shown:
            self._text(marker)

    def _goes_on(self, marker: str) -> bool:
        """Whether a marker belongs to the header that is being read."""
        channels = self._spec.channels
        in_header = self._region is _Region.HEADER
        return in_header and channels is not None and marker not in channels.end

    def _mark(self, marker: str, *, real: bool) -> None:
        """Act on a marker found in text, or a control token (`real`)."""
        thought, channels = self._spec.reasoning, self._spec.channels
        form = self._table.opens.get(marker)
        if form is not None:
            self._open(form, marker)
        elif thought is not None and marker == thought.open:
            if self._region is _Region.TEXT and (real or not self._out.said):
                self._enter(_Region.REASONING)
            elif not real:
                self._visible(marker)
        elif thought is not None and marker == thought.close:
            if real or self._owed or self._region is _Region.REASONING:
                self._enter(_Region.TEXT)
            else:
                self._visible(marker)
        elif channels is not None and marker in channels.open:
            if self._region is not _Region.HEADER:
                self._begin_header(opened=True)
            self._opened = True
            self._keep(marker)
        elif channels is not None and marker == channels.message:
            if self._region is _Region.HEADER:
                self._message(channels, marker)
            elif not real:
                self._visible(marker)
        elif channels is not None:
            self._enter(_Region.TEXT)

    def _begin_header(self, *, opened: bool) -> None:
        self._region, self._raw, self._n_raw = _Region.HEADER, [], 0
        self._opened = opened
        self._marks = self._table.in_header.fresh()

    def _message(self, channels: Channels, marker: str) -> None:
        """A header has ended: what it says decides where its message goes."""
        header = "".join(self._raw)
        call = re.search(channels.call, header)
        if call is not None and self._tools:
            self._keep(marker)
            self._back, self._region = _Region.TEXT, _Region.CALL
            self._marks = self._table.in_text.fresh()
            self._form, self._body = CHANNEL_CALL, HeadBody("", call.group("name"))
        elif call is not None or "to=" in header:
            self._keep(marker)
            self._give_up()
        elif re.search(channels.reasoning, header):
            self._enter(_Region.REASONING)
        else:
            self._enter(_Region.TEXT)

    def _open(self, form: Form, marker: str) -> None:
        self._back = self._region
        self._region, self._form = _Region.CALL, form
        self._raw, self._n_raw = [marker], len(marker)
        self._body = reader(form, marker, self._offered)
        if marker[-1] in "{[":
            self._body.feed(marker[-1])

    def _enter(self, region: _Region) -> None:
        """Begin text or reasoning; line breaks between belong to the format."""
        if region is not self._region:
            self._out.drop(was_text=self._region is _Region.TEXT)
        self._region = region
        reasoning = region is _Region.REASONING
        self._marks = (self._table.in_reasoning if reasoning else self._table.in_text).fresh()
        self._out.skip("\n")
        self._line, self._owed = True, False

    # Text

    def _text(self, text: str) -> None:
        while text and not self.done:
            match self._region:
                case _Region.TEXT:
                    text = self._plain(text)
                case _Region.REASONING:
                    text = self._thought(text)
                case _Region.CALL:
                    text = self._called(text)
                case _Region.AFTER:
                    text = self._after(text)
                case _Region.HEADER:
                    text = self._header(text)

    def _plain(self, text: str) -> str:
        if self._line and self._table.at_line:
            rest = text.lstrip()
            self._visible(text[: len(text) - len(rest)])
            if not rest or self.done:
                return ""
            self._line, text = False, rest
            if form := self._table.at_line.get(rest[0]):
                self._open(form, rest[0])
                return rest[1:]
        scan = self._marks.feed(text)
        self._visible(scan.text)
        if scan.match is not None and not self.done:
            if scan.match[0] == "\n" and (form := self._table.at_line.get(scan.match[1:])):
                self._visible("\n")
                if not self.done:
                    self._open(form, scan.match[1:])
            else:
                self._mark(scan.match, real=False)
        return scan.rest

    def _thought(self, text: str) -> str:
        scan = self._marks.feed(text)
        self._out.reasoning(scan.text)
        if scan.match is not None:
            self._mark(scan.match, real=False)
        return scan.rest

    def _called(self, text: str) -> str:
        assert self._body is not None
        used = self._body.feed(text)
        self._keep(text[:used])
        if self._body.failed:
            self._give_up()
        elif self._body.closed:
            self._complete()
        return text[used:]

    def _after(self, text: str) -> str:
        """White space and closing markers after a call; whatever else comes is text."""
        assert self._form is not None
        rest = ("".join(self._raw) + text).lstrip()
        self._raw = []
        while closing := next((c for c in self._form.close if rest.startswith(c)), None):
            rest = rest[len(closing) :].lstrip()
        if not rest:
            return ""
        if any(closing.startswith(rest) for closing in self._form.close):
            self._raw = [rest]
            return ""
        self._region = _Region.TEXT
        return rest

    def _header(self, text: str) -> str:
        if not self._opened:
            # The prompt has begun this header; without a marker, only a recipient goes on with it.
            begun = ("".join(self._raw) + text).removeprefix(" ")
            if not begun.startswith("to=") and not "to=".startswith(begun):
                self._give_up()
                return text
            self._opened = begun.startswith("to=")
        part = text[: max(0, MAX_HEAD - self._n_raw)]
        scan = self._marks.feed(part)
        self._raw.append(scan.text)
        self._n_raw += len(part) - len(scan.rest)
        if scan.match is not None:
            self._mark(scan.match, real=False)
        elif self._n_raw >= MAX_HEAD:
            self._give_up()
        return scan.rest + text[len(part) :]

    def _keep(self, text: str) -> None:
        self._raw.append(text)
        self._n_raw += len(text)

    # The end of regions

    def _complete(self) -> None:
        assert self._body is not None
        assert self._form is not None
        calls = self._body.calls()
        if not calls:
            self._give_up()
            return
        form, owed = self._form, self._back is _Region.REASONING
        self._body, self._raw = None, []
        self._out.drop(was_text=not owed)
        for name, call_id, arguments in calls:
            if self._max_calls is not None and self.n_calls >= self._max_calls:
                break
            valid = call_id if ID_PATTERN.fullmatch(call_id) else self._new_id()
            self._out.add(ToolCall(self.n_calls, valid, name, arguments))
            self.n_calls += 1
        self._region = _Region.TEXT
        self._enter(_Region.TEXT)
        self._owed = owed
        self._region = _Region.AFTER if form.close else _Region.TEXT
        self._out.skip(" \t\r\n")
        self.done = self._max_calls is not None and self.n_calls >= self._max_calls
        self.done_early = self.done

    def _give_up(self) -> None:
        """What looked like a call is not one: show it as the text that it is."""
        raw, self._raw, self._body = "".join(self._raw) + self._marks.flush(), [], None
        if self._region is _Region.HEADER:
            self._marks = self._table.in_text.fresh()
        if self._region is _Region.CALL and self._back is _Region.REASONING:
            self._region = _Region.REASONING
            self._out.reasoning(raw)
        else:
            self._region = _Region.TEXT
            self._line = False
            self._visible(raw)

    def _settle(self) -> None:
        """A marker or the end has come: what is held as part of another marker is text."""
        if self._region in (_Region.CALL, _Region.HEADER):
            self._give_up()
        elif self._region is _Region.AFTER:
            self._region = _Region.TEXT
            raw, self._raw = "".join(self._raw), []
            self._visible(raw)
        elif self._region is _Region.REASONING:
            self._out.reasoning(self._marks.flush())
        else:
            self._visible(self._marks.flush())

    def _visible(self, text: str) -> None:
        if self._out.text(text):
            self.stopped_by = self._out.stopped_by
            self.done = self.done_early = True
