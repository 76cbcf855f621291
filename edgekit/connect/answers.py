"""Read the three dialects of a streamed answer as strictly as the strictest client does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Event = tuple[str | None, Any]
"""The name of a server-sent event, if it has one, and its data."""


class BrokenContractError(Exception):
    """The server did something that clients of this dialect stumble over."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as a client puts it together."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a stream said."""

    text: str
    calls: tuple[Call, ...]
    finish: str
    output_tokens: int


def must(holds: object, problem: str) -> None:
    """Raise BrokenContractError unless it holds."""
    if not holds:
        raise BrokenContractError(problem)


def events(lines: Iterable[str]) -> list[Event]:
    """Read server-sent events; comments, which keep a connection alive, are skipped."""
    found: list[Event] = []
    name: str | None = None
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            text = line[5:].strip()
            try:
                found.append((name, text if text == "[DONE]" else json.loads(text)))
            except ValueError:
                raise BrokenContractError(f"an event is not JSON: {text[:60]}") from None
            name = None
    return found


def read_chat(stream: Sequence[Event]) -> Answer:
    """Put an answer of /v1/chat/completions together. Raises BrokenContractError."""
    must(stream and stream[-1][1] == "[DONE]", "the stream does not end with [DONE]")
    chunks = [data for _, data in stream[:-1]]
    text, finish, usage = "", None, None
    calls: dict[int, dict[str, str]] = {}
    for number, chunk in enumerate(chunks):
        _no_error(chunk)
        lacking = [k for k in ("id", "object", "created", "model", "choices") if k not in chunk]
        must(not lacking, f"a chunk lacks {', '.join(lacking)}")
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if number == 0:
                must(delta.get("role") == "assistant", "the first delta has no role")
            text += delta.get("content") or ""
            for part in delta.get("tool_calls") or ():
                _chat_call(calls, part)
            finish = choice.get("finish_reason") or finish
    must(finish, "the stream has no finish_reason")
    must(usage, "no usage came, though it was asked for")
    assert isinstance(usage, dict)
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        must(isinstance(usage.get(key), int), f"usage lacks {key}")
    made = tuple(Call(c["id"], c["name"], c["arguments"]) for c in calls.values())
    _whole(made)
    must(not made or finish == "tool_calls", f"a tool call ended with finish_reason {finish}")
    return Answer(text, made, str(finish), int(usage["completion_tokens"]))


def _chat_call(calls: dict[int, dict[str, str]], part: dict[str, Any]) -> None:
    index, function = part.get("index"), part.get("function") or {}
    must(isinstance(index, int), "a tool call has no index")
    assert isinstance(index, int)
    if index not in calls:
        must(part.get("id") and function.get("name"), "a tool call begins without id and name")
        must(part.get("type") == "function", "a tool call begins without its type")
        must(re.fullmatch(r"[A-Za-z0-9]{9}", part["id"]), "a tool call's id is not 9 letters")
        calls[index] = {"id": part["id"], "name": function["name"], "arguments": ""}
    else:
        again = set(part) - {"index", "function"} | set(function) - {"arguments"}
        must(not again, f"a later delta of a tool call repeats {', '.join(sorted(again))}")
    calls[index]["arguments"] += function.get("arguments") or ""


def read_responses(stream: Sequence[Event]) -> Answer:
    """Put an answer of /v1/responses together. Raises BrokenContractError."""
    data = [event for _, event in stream if isinstance(event, dict)]
    kinds = [event.get("type") for event in data]
    failed = next((e for e in data if e.get("type") in ("response.failed", "error")), None)
    if failed is not None:
        error = (failed.get("response") or failed).get("error") or failed
        raise BrokenContractError(f"the server failed: {error.get('message') or error}")
    must(kinds and kinds[0] == "response.created", "the first event is not response.created")
    must(
        kinds[-1] in ("response.completed", "response.incomplete"),
        "the stream does not end with response.completed",
    )
    numbers = [event.get("sequence_number") for event in data]
    must(numbers == sorted(set(numbers), key=numbers.index), "sequence numbers repeat")
    must(None not in numbers, "an event lacks sequence_number")
    text = "".join(e["delta"] for e in data if e.get("type") == "response.output_text.delta")
    items = [e["item"] for e in data if e.get("type") == "response.output_item.done"]
    added = kinds.count("response.output_item.added")
    must(added == len(items), "an output item was begun and not done")
    final = data[-1]["response"]
    must(final.get("id"), "response.completed has no id")
    usage = final.get("usage") or {}
    for key in ("input_tokens", "output_tokens", "total_tokens"):
        must(isinstance(usage.get(key), int), f"usage lacks {key}")
    calls = tuple(
        Call(item["call_id"], item["name"], item["arguments"])
        for item in items
        if item["type"] == "function_call"
    )
    _whole(calls)
    return Answer(text, calls, str(final.get("status")), int(usage["output_tokens"]))


def read_messages(stream: Sequence[Event]) -> Answer:
    """Put an answer of /v1/messages together. Raises BrokenContractError."""
    data = [event for _, event in stream if isinstance(event, dict)]
    must(all(n == e.get("type") for n, e in stream), "an event's name is not its type")
    kinds = [event["type"] for event in data if event["type"] != "ping"]
    broken = next((e for e in data if e["type"] == "error"), None)
    if broken is not None:
        raise BrokenContractError(f"the server failed: {broken['error'].get('message')}")
    must(kinds[:1] == ["message_start"], "the first event is not message_start")
    must(kinds[-2:] == ["message_delta", "message_stop"], "message_delta, message_stop are missing")
    text, calls, opened = "", [], -1
    parts: dict[int, list[str]] = {}
    blocks: dict[int, dict[str, Any]] = {}
    for event in data:
        if event["type"] == "content_block_start":
            must(opened == -1, "a block starts before the last one stopped")
            opened = event["index"]
            blocks[opened], parts[opened] = event["content_block"], []
        elif event["type"] == "content_block_delta":
            must(event["index"] == opened, "a delta belongs to no open block")
            delta = event["delta"]
            text += delta["text"] if delta["type"] == "text_delta" else ""
            if delta["type"] == "input_json_delta":
                parts[opened].append(delta["partial_json"])
        elif event["type"] == "content_block_stop":
            must(event["index"] == opened, "a block stops that is not open")
            opened = -1
    must(opened == -1, "a block is not stopped")
    for index, block in blocks.items():
        if block["type"] == "tool_use":
            calls.append(Call(block["id"], block["name"], "".join(parts[index]) or "{}"))
    _whole(calls)
    end = next(e for e in reversed(data) if e["type"] == "message_delta")
    finish, usage = end["delta"].get("stop_reason"), end.get("usage") or {}
    must(finish, "message_delta has no stop_reason")
    must(isinstance(usage.get("output_tokens"), int), "message_delta has no usage.output_tokens")
    must(not calls or finish == "tool_use", f"a tool call ended with stop_reason {finish}")
    return Answer(text, tuple(calls), finish, int(usage["output_tokens"]))


def _whole(calls: Iterable[Call]) -> None:
    for call in calls:
        try:
            is_object = isinstance(json.loads(call.arguments), dict)
        except ValueError:
            is_object = False
        must(is_object, f"the arguments of {call.name} are no JSON object: {call.arguments[:60]}")


def _no_error(chunk: dict[str, Any]) -> None:
    error = chunk.get("error")
    if error is not None:
        said = error.get("message") if isinstance(error, dict) else error
        raise BrokenContractError(f"the server failed: {said}")
