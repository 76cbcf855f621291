"""What an answer consists of: text, reasoning, tool calls."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass

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
    """A whole call. `arguments` is the text of one JSON object, as the model wrote it where
    its family writes JSON."""

    index: int
    id: str
    name: str
    arguments: str


Event = Text | ReasoningText | ToolCall


def new_call_id() -> str:
    """Return a fresh call id: 9 letters and digits."""
    return "".join(secrets.choice(ID_LETTERS) for _ in range(9))


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
