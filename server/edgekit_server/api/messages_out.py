"""An answer's events in Anthropic's words: a stream's events in order, or a whole message. Pure.

Order: message_start; per block content_block_start, its deltas, content_block_stop; message_delta
with the reason it stopped; message_stop. A tool's input comes in one delta, since the parser
releases a call whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..chat.parser import Event, ReasoningText, Text, ToolCall
from .choice import Usage
from .messages_in import ID_PREFIX
from .messages_thoughts import signature_of

Data = dict[str, object]


def usage_data(usage: Usage) -> Data:
    """Return Anthropic's counts: what was read from the cache is not part of `input_tokens`."""
    thoughts = {"thinking_tokens": usage.reasoning_tokens}
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        **({"output_tokens_details": thoughts} if usage.reasoning_tokens else {}),
    }


def stop_data(finish: str | None, stopped_by: str | None) -> Data:
    """Return why an answer ended: `finish` in OpenAI's words, `stopped_by` the stop string."""
    reason, sequence = "end_turn", None
    if finish == "length":
        reason = "max_tokens"
    elif finish == "tool_calls":
        reason = "tool_use"
    elif stopped_by is not None:
        reason, sequence = "stop_sequence", stopped_by
    return {"stop_reason": reason, "stop_sequence": sequence}


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a message before its first token."""

    id: str
    model: str
    hide_thinking: bool = False
    """The client wants to know that there were thoughts, but not which."""

    def message(self, content: list[Data], stop: Data, usage: Data) -> Data:
        """Return a message object."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            **stop,
            "usage": usage,
        }


def whole(head: Head, events: Sequence[Event], stop: Data, usage: Usage) -> Data:
    """Return an answer whose events have been merged as one message."""
    content = [_block(event, hide_thinking=head.hide_thinking) for event in events]
    return head.message(content, stop, usage_data(usage))


class Writer:
    """One stream being written: `start`, `events` as they come, `end`."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._open: type[Event] | None = None
        self._index = -1
        self._thought: list[str] = []

    def start(self, n_prompt: int) -> Data:
        """Return message_start. What the cache had of the prompt is not known yet."""
        stop: Data = {"stop_reason": None, "stop_sequence": None}
        message = self._head.message([], stop, usage_data(Usage(n_prompt, 0, 0)))
        return {"type": "message_start", "message": message}

    def events(self, events: Sequence[Event]) -> list[Data]:
        """Return the stream's events for some of the answer's."""
        written: list[Data] = []
        for event in events:
            if self._open is not type(event) or isinstance(event, ToolCall):
                written += [*self._close(), self._begin(event)]
            match event:
                case Text(text):
                    written.append(self._delta("text_delta", "text", text))
                case ToolCall():
                    written.append(self._delta("input_json_delta", "partial_json", event.arguments))
                case ReasoningText(text):
                    self._thought.append(text)
                    if not self._head.hide_thinking:
                        written.append(self._delta("thinking_delta", "thinking", text))
        return written

    def end(self, stop: Data, usage: Usage) -> list[Data]:
        """Return what closes a stream whose answer has ended."""
        delta: Data = {"type": "message_delta", "delta": stop, "usage": usage_data(usage)}
        return [*self._close(), delta, {"type": "message_stop"}]

    def _begin(self, event: Event) -> Data:
        self._open = type(event)
        self._index += 1
        return {
            "type": "content_block_start",
            "index": self._index,
            "content_block": _empty(event),
        }

    def _close(self) -> list[Data]:
        if self._open is None:
            return []
        written: list[Data] = []
        if self._open is ReasoningText:
            thought, self._thought = "".join(self._thought), []
            signature = signature_of(thought, hidden=self._head.hide_thinking)
            written.append(self._delta("signature_delta", "signature", signature))
        self._open = None
        return [*written, {"type": "content_block_stop", "index": self._index}]

    def _delta(self, kind: str, key: str, value: str) -> Data:
        delta = {"type": kind, key: value}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _empty(event: Event) -> Data:
    match event:
        case ToolCall():
            return {**_call(event), "input": {}}
        case ReasoningText():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case Text():
            return {"type": "text", "text": ""}


def _block(event: Event, *, hide_thinking: bool) -> Data:
    match event:
        case ToolCall():
            return {**_call(event), "input": json.loads(event.arguments)}
        case ReasoningText(text):
            shown = "" if hide_thinking else text
            signature = signature_of(text, hidden=hide_thinking)
            return {"type": "thinking", "thinking": shown, "signature": signature}
        case Text(text):
            return {"type": "text", "text": text}


def _call(event: ToolCall) -> Data:
    return {"type": "tool_use", "id": ID_PREFIX + event.id, "name": event.name}
