"""Tokens to events, one pass: text, reasoning and tool calls, whatever the chunks.

Pure. Holds back half UTF-8 characters, half stop strings, and a tool call until its JSON is
whole: a call that does not parse is then still the text that it was, never a broken call.
Amortised O(1) per token: no text is looked at twice.
"""

from __future__ import annotations

import codecs
import json
import re
import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from .family import CallKind, Spec
from .jsonscan import JsonScanner
from .scan import Scanner

ID_LETTERS = string.ascii_letters + string.digits
ID_PATTERN = re.compile(r"[A-Za-z0-9]{9}")
"""Mistral's templates insist on this form of a call id; nobody else minds."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningText:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call. `arguments` is the JSON text exactly as the model wrote it."""

    index: int
    id: str
    name: str
    arguments: str


Event = Text | ReasoningText | ToolCall


def new_call_id() -> str:
    """Return a fresh call id: 9 letters and digits."""
    return "".join(secrets.choice(ID_LETTERS) for _ in range(9))


class _Region(Enum):
    TEXT = auto()
    REASONING = auto()
    NAME = auto()
    CALL_ID = auto()
    JSON = auto()


class Parser:
    """One answer being read. `feed` until `done`, then `finish` once."""

    def __init__(
        self,
        spec: Spec,
        *,
        stop: Sequence[str] = (),
        tools: bool = True,
        max_calls: int | None = None,
        in_reasoning: bool = False,
        call_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`tools` False: call markers are shown as text. `in_reasoning`: the prompt opened it."""
        self._call = spec.call if tools else None
        self._reasoning = spec.reasoning
        self._shown = set() if tools or spec.call is None else {spec.call.open, *_inner(spec)}
        self._stop = Scanner(stop)
        self._max_calls = max_calls
        self._new_id = call_id
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._region = _Region.REASONING if in_reasoning and spec.reasoning else _Region.TEXT
        self._raw: list[str] = []
        self._name: list[str] = []
        self._id: list[str] = []
        self._json: JsonScanner | None = None
        self._events: list[Event] = []
        self.n_calls = 0
        self.stopped_by: str | None = None
        """The stop string that ended the answer."""
        self.done = False
        """Nothing that follows matters; the engine may be told to stop."""
        self.done_early = False
        """`done` came from a stop string or the call limit, before the engine's own end."""

    def feed(self, pieces: Iterable[tuple[bytes, bool]]) -> list[Event]:
        """Take (bytes, is control token) pieces; return what can be shown now."""
        for data, is_control in pieces:
            if self.done:
                break
            if is_control:
                self._text(self._decoder.decode(b"", True))
                self._decoder.reset()
                if not self.done:
                    self._marker(data.decode("utf-8", "replace"))
            else:
                self._text(self._decoder.decode(data))
        return self._take()

    def finish(self) -> list[Event]:
        """The answer has ended: return what was held back. An unfinished call becomes text."""
        if not self.done:
            self._text(self._decoder.decode(b"", True))
        if not self.done:
            self._leave()
        self.done = True
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return merge(events)

    def _marker(self, marker: str) -> None:
        call, reasoning = self._call, self._reasoning
        if call is not None and marker == call.open:
            self._leave()
            if self.done:
                return
            listed = call.kind is CallKind.JSON_LIST
            self._region = _Region.JSON if listed else _Region.NAME
            self._json = JsonScanner("[" if listed else "{")
            self._raw, self._name, self._id = [marker], [], []
        elif call is not None and marker == call.id and self._region is _Region.NAME:
            self._region = _Region.CALL_ID
            self._raw.append(marker)
        elif (
            call is not None
            and marker == call.arguments
            and self._region in (_Region.NAME, _Region.CALL_ID)
        ):
            self._region = _Region.JSON
            self._raw.append(marker)
        elif reasoning is not None and marker == reasoning.open:
            self._leave()
            self._region = _Region.REASONING
        elif reasoning is not None and marker == reasoning.close:
            self._leave()
        elif marker in self._shown:
            self._text(marker)
        # Any other control token is the model's own business and is not shown.

    def _text(self, text: str) -> None:
        while text and not self.done:
            if self._region is _Region.TEXT:
                text = self._plain(text)
            elif self._region is _Region.REASONING:
                self._events.append(ReasoningText(text))
                return
            elif self._region is _Region.JSON:
                text = self._body(text)
            else:
                self._raw.append(text)
                (self._name if self._region is _Region.NAME else self._id).append(text)
                return

    def _plain(self, text: str) -> str:
        scan = self._stop.feed(text)
        if scan.text:
            self._events.append(Text(scan.text))
        if scan.match is not None:
            self.stopped_by = scan.match
            self.done = self.done_early = True
        return ""

    def _body(self, text: str) -> str:
        assert self._json is not None
        used = self._json.feed(text)
        self._raw.append(text[:used])
        if self._json.failed:
            self._give_up()
        elif self._json.closed:
            self._complete()
        return text[used:]

    def _complete(self) -> None:
        assert self._call is not None
        assert self._json is not None
        calls = (
            _one_call("".join(self._name), "".join(self._id), self._json.text)
            if self._call.kind is CallKind.NAME_THEN_JSON
            else _listed_calls(self._json.text)
        )
        if not calls:
            self._give_up()
            return
        for name, call_id, arguments in calls:
            if self._max_calls is not None and self.n_calls >= self._max_calls:
                break
            valid = call_id if ID_PATTERN.fullmatch(call_id) else self._new_id()
            self._events.append(ToolCall(self.n_calls, valid, name, arguments))
            self.n_calls += 1
        self._region, self._json, self._raw = _Region.TEXT, None, []
        self.done = self._max_calls is not None and self.n_calls >= self._max_calls
        self.done_early = self.done

    def _give_up(self) -> None:
        """What looked like a call is not one: show it as the text that it is."""
        raw, self._raw = "".join(self._raw), []
        self._region, self._json = _Region.TEXT, None
        self._text(raw)

    def _leave(self) -> None:
        """Close the present region, as a marker or the end does."""
        if self._region is _Region.TEXT:
            held = self._stop.flush()
            if held:
                self._events.append(Text(held))
        elif self._region is not _Region.REASONING:
            self._give_up()
            if not self.done:
                self._leave()
        self._region = _Region.TEXT


def _inner(spec: Spec) -> list[str]:
    return [m for m in (spec.call.id, spec.call.arguments) if m] if spec.call else []


def _one_call(name: str, call_id: str, body: str) -> list[tuple[str, str, str]]:
    value = _loads(body)
    name = name.strip()
    return [(name, call_id.strip(), body)] if name and isinstance(value, dict) else []


def _listed_calls(body: str) -> list[tuple[str, str, str]]:
    """Read [{"name", "arguments", "id"?}, ...]; an empty list if any item is not a call."""
    items = _loads(body)
    calls = []
    for item in items if isinstance(items, list) else []:
        name = item.get("name") if isinstance(item, dict) else None
        arguments = item.get("arguments") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return []
        written = json.dumps(arguments, ensure_ascii=False)
        calls.append((name, str(item.get("id") or ""), written))
    return calls


def _loads(body: str) -> object:
    try:
        value: object = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def merge(events: Iterable[Event]) -> list[Event]:
    """Join neighbouring texts of one kind: the form in which two event lists compare equal."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, Text) and isinstance(last, Text):
            merged[-1] = Text(last.text + event.text)
        elif isinstance(event, ReasoningText) and isinstance(last, ReasoningText):
            merged[-1] = ReasoningText(last.text + event.text)
        else:
            merged.append(event)
    return merged
