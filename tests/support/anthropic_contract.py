"""Hold an Anthropic stream, or a whole message, to the contract of its strictest readers.

Order and shapes: Anthropic's API reference for streamed messages, and what its own client libraries
and agents read. Every violation is an AssertionError that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import Any

STOP_REASONS = ("end_turn", "max_tokens", "stop_sequence", "tool_use")
ERROR_TYPES = (
    "invalid_request_error", "authentication_error", "permission_error", "not_found_error",
    "request_too_large", "rate_limit_error", "api_error", "timeout_error", "overloaded_error",
)  # fmt: skip
DELTAS = {
    "text": {"text_delta": "text"},
    "tool_use": {"input_json_delta": "partial_json"},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
}
"""Block type to its delta types, and the one key that each of them carries."""
EMPTY = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)
_TOOL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def events(lines: Iterable[str], *, torn: bool = False) -> list[dict[str, Any]]:
    """Return a stream's events from its lines; assert the framing of each.

    `torn`: the client left, so that the last event may be half there; it is not returned.
    """
    found: list[dict[str, Any]] = []
    frame: list[str] = []
    for line in lines:
        if line:
            frame.append(line)
            continue
        if not frame:
            continue
        assert len(frame) == 2, f"an event is a name and one line of data, not {frame}"
        assert frame[0].startswith("event: "), f"an event without a name: {frame}"
        assert frame[1].startswith("data: "), f"an event without data: {frame}"
        data = json.loads(frame[1].removeprefix("data: "))
        assert isinstance(data, dict), f"data that is no object: {data!r}"
        name = frame[0].removeprefix("event: ")
        assert data.get("type") == name, f"event {name} with data of type {data.get('type')!r}"
        found.append(data)
        frame = []
    assert torn or not frame, f"the stream ends within an event: {frame}"
    return found


def check_stream(
    found: list[dict[str, Any]],
    *,
    tools: Collection[str] | None = None,
    input_tokens: int | None = None,
    torn: bool = False,
) -> dict[str, Any]:
    """Return the message that a stream's events build up to.

    `tools`: the names that may be called. `input_tokens`: what the request counts as. `torn`: the
    client left, or an error ended it, so that the end may be missing; an `error` event must then
    be the last. A message without an end has no stop_reason.
    """
    return _Reader(tools, input_tokens).read(found, torn=torn)


def check_message(
    message: dict[str, Any],
    *,
    tools: Collection[str] | None = None,
    input_tokens: int | None = None,
) -> None:
    """Assert the shape of a finished message."""
    keys = {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"}
    assert message.keys() == keys, f"keys of a message: {sorted(message)}"
    assert (message["type"], message["role"]) == ("message", "assistant"), message
    assert str(message["id"]).startswith("msg_"), f"id {message['id']!r}"
    assert isinstance(message["model"], str), f"model {message['model']!r}"
    assert message["model"], "no model"
    ids = []
    for block in message["content"]:
        _check_block(block, tools)
        if block["type"] == "tool_use":
            ids.append(block["id"])
    assert len(ids) == len(set(ids)), f"call ids repeat: {ids}"
    _check_stop(message, n_calls=len(ids))
    _check_usage(message["usage"], input_tokens)


def check_error(body: dict[str, Any]) -> str:
    """Assert the shape of an error, event or response; return its type."""
    assert body.keys() in ({"type", "error"}, {"type", "error", "request_id"}), body
    assert body["type"] == "error", body
    error = body["error"]
    assert error.keys() == {"type", "message"}, f"keys of an error: {sorted(error)}"
    assert error["type"] in ERROR_TYPES, f"error type {error['type']!r}"
    assert isinstance(error["message"], str), error
    assert error["message"], "an error without a message"
    return str(error["type"])


class _Reader:
    """Reads one stream event by event."""

    def __init__(self, tools: Collection[str] | None, input_tokens: int | None) -> None:
        self._tools = tools
        self._input_tokens = input_tokens
        self._message: dict[str, Any] | None = None
        self._block: dict[str, Any] | None = None
        """The open one."""
        self._parts: list[str] = []
        self._signed = False
        self._stopped = self._ended = False

    def read(self, found: list[dict[str, Any]], *, torn: bool) -> dict[str, Any]:
        assert found, "an empty stream"
        for at, event in enumerate(found):
            kind = event.get("type")
            assert not self._ended, f"{kind} after message_stop"
            if kind == "error":
                assert torn, f"an error: {event}"
                check_error(event)
                assert at == len(found) - 1, "something after an error"
            elif kind == "ping":
                assert event == {"type": "ping"}, event
                assert self._message is not None, "a ping before message_start"
            else:
                self._event(event)
        assert torn or self._ended, f"the stream ends with {found[-1]['type']}"
        if self._message is None:
            assert found[-1]["type"] == "error", "a stream without message_start"
            return {}
        if self._ended:
            check_message(self._message, tools=self._tools, input_tokens=self._input_tokens)
        return self._message

    def _event(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "message_start":
            self._start(event)
            return
        assert self._message is not None, f"{kind} before message_start"
        if self._stopped:
            assert kind == "message_stop", f"{kind} after message_delta"
        match kind:
            case "content_block_start":
                self._open(event)
            case "content_block_delta":
                self._delta(event)
            case "content_block_stop":
                self._close(event)
            case "message_delta":
                self._stop(event)
            case "message_stop":
                assert event == {"type": "message_stop"}, event
                assert self._stopped, "message_stop without message_delta"
                self._ended = True
            case _:
                raise AssertionError(f"there is no event {kind!r}")

    def _start(self, event: dict[str, Any]) -> None:
        assert self._message is None, "a second message_start"
        assert event.keys() == {"type", "message"}, event
        message = event["message"]
        assert message["content"] == [], "message_start with content"
        assert message["stop_reason"] is None, "message_start with a stop_reason"
        assert message["stop_sequence"] is None, "message_start with a stop_sequence"
        assert message["usage"]["output_tokens"] in (0, 1), message["usage"]
        _check_usage(message["usage"], self._input_tokens)
        self._message = {**message, "content": []}

    def _open(self, event: dict[str, Any]) -> None:
        assert self._message is not None
        assert self._block is None, "content_block_start while a block is open"
        assert event.keys() == {"type", "index", "content_block"}, event
        at = len(self._message["content"])
        assert event["index"] == at, f"block {at} has index {event['index']}"
        block = event["content_block"]
        if block.get("type") == "tool_use":
            assert block.get("input") == {}, f"a call begins with input {block.get('input')}"
        else:
            assert block == EMPTY.get(block.get("type")), f"a block begins with {block}"
        self._block, self._parts, self._signed = {**block}, [], False

    def _delta(self, event: dict[str, Any]) -> None:
        assert event.keys() == {"type", "index", "delta"}, event
        block, delta = self._same(event), event["delta"]
        key = DELTAS[block["type"]].get(delta.get("type"))
        assert key is not None, f"{delta.get('type')} in a block of type {block['type']}"
        assert delta.keys() == {"type", key}, f"keys of {delta['type']}: {sorted(delta)}"
        assert isinstance(delta[key], str), f"{delta['type']} with {delta[key]!r}"
        assert not self._signed, f"{delta['type']} after signature_delta"
        if key == "signature":
            assert delta[key], "an empty signature"
            block["signature"], self._signed = delta[key], True
        else:
            self._parts.append(delta[key])

    def _close(self, event: dict[str, Any]) -> None:
        assert self._message is not None
        assert event.keys() == {"type", "index"}, event
        block, text = self._same(event), "".join(self._parts)
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(text or "{}")
            except ValueError:
                raise AssertionError(f"the input of a call is no JSON: {text!r}") from None
        else:
            block[block["type"]] = text
        _check_block(block, self._tools)
        self._message["content"].append(block)
        self._block = None

    def _same(self, event: dict[str, Any]) -> dict[str, Any]:
        assert self._message is not None
        assert self._block is not None, f"{event['type']} while no block is open"
        at = len(self._message["content"])
        assert event["index"] == at, f"{event['type']} for block {event['index']}, {at} is open"
        return self._block

    def _stop(self, event: dict[str, Any]) -> None:
        assert self._message is not None
        assert self._block is None, "message_delta while a block is open"
        assert event.keys() == {"type", "delta", "usage"}, event
        delta, before = event["delta"], self._message["usage"]
        assert delta.keys() == {"stop_reason", "stop_sequence"}, delta
        _check_usage(event["usage"], self._input_tokens)
        assert _total(event["usage"]) == _total(before), (
            f"the prompt had {_total(before)} tokens, in the end {_total(event['usage'])}"
        )
        assert event["usage"]["output_tokens"] >= before["output_tokens"], "output_tokens fell"
        self._message |= {**delta, "usage": {**before, **event["usage"]}}
        self._stopped = True


def _check_block(block: dict[str, Any], tools: Collection[str] | None) -> None:
    match block.get("type"):
        case "text":
            assert block.keys() == {"type", "text"}, f"keys of text: {sorted(block)}"
            assert isinstance(block["text"], str), block
            assert block["text"], "an empty text block"
        case "thinking":
            assert block.keys() == {"type", "thinking", "signature"}, sorted(block)
            assert isinstance(block["thinking"], str), block
            assert isinstance(block["signature"], str), block
            assert block["signature"], "a thought without a signature"
        case "tool_use":
            assert block.keys() == {"type", "id", "name", "input"}, sorted(block)
            assert _TOOL_ID.fullmatch(block["id"]), f"call id {block['id']!r}"
            assert block["id"].startswith("toolu_"), f"call id {block['id']!r}"
            assert isinstance(block["input"], dict), f"input {block['input']!r}"
            assert block["name"], "a call without a name"
            assert tools is None or block["name"] in tools, f"no tool is named {block['name']!r}"
        case kind:
            raise AssertionError(f"there is no block of type {kind!r}")


def _check_stop(message: dict[str, Any], *, n_calls: int) -> None:
    reason, sequence = message["stop_reason"], message["stop_sequence"]
    assert reason in STOP_REASONS, f"stop_reason {reason!r}"
    by_sequence = reason == "stop_sequence"
    assert (sequence is not None) == by_sequence, f"{reason} with stop_sequence {sequence!r}"
    if n_calls:
        assert reason in ("tool_use", "max_tokens"), f"{reason} with {n_calls} calls"
    else:
        assert reason != "tool_use", "tool_use without a call"


def _check_usage(usage: dict[str, Any], input_tokens: int | None) -> None:
    for key in COUNTS:
        count = usage.get(key)
        assert isinstance(count, int) and count >= 0, f"{key} {count!r}"  # noqa: PT018
    total = _total(usage)
    assert input_tokens in (None, total), f"{input_tokens} tokens counted, {total} in the usage"


def _total(usage: dict[str, Any]) -> int:
    return sum(int(usage[key]) for key in COUNTS if key != "output_tokens")
