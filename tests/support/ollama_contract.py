"""Hold an answer of /api/chat or /api/generate to what the strictest readers of Ollama demand.

Every check is an AssertionError that names the line and what is wrong with it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

COUNTS = ("prompt_eval_count", "eval_count")
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
REASONS = ("stop", "length", "load", "unload")


@dataclass(slots=True)
class Read:
    """What an answer said."""

    content: str = ""
    thinking: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Name and arguments."""
    last: dict[str, Any] | None = None
    """The object with `done`; None after an error, or where the answer was cut off."""
    error: str | None = None
    n_lines: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


def check(
    body: bytes, *, model: str, chat: bool = True, whole: bool = False, cut: bool = False
) -> Read:
    """Return what the bytes of an answer say; AssertionError for a breach of the contract.

    `whole`: it was not a stream. `cut`: the client left, so the end may be missing.
    """
    lines = body.split(b"\n")
    rest = lines.pop()
    if not cut:
        assert rest == b"", f"the last line has no line break: {rest!r}"
        assert lines, "there is no line"
    if whole:
        assert len(lines) == 1, f"{len(lines)} lines in an answer that is no stream"
    read, times = Read(), []
    for at, raw in enumerate(lines):
        where = f"line {at}"
        assert read.last is None, f"{where} comes after done"
        assert read.error is None, f"{where} comes after an error"
        item = _object(raw, where)
        read.n_lines += 1
        if "error" in item:
            assert item.keys() == {"error"}, f"{where}: an error with {sorted(item)}"
            assert isinstance(item["error"], str), f"{where}: error is no text"
            assert item["error"], f"{where}: error is empty"
            read.error = item["error"]
            continue
        assert item.get("model") == model, f"{where}: model is {item.get('model')!r}"
        times.append(_moment(item.get("created_at"), where))
        assert times == sorted(times), f"{where}: created_at goes back"
        assert isinstance(item.get("done"), bool), f"{where}: done is {item.get('done')!r}"
        (_chat if chat else _generate)(item, read, where, alone=whole or not at)
        if item["done"]:
            _end(item, where, alone=len(lines) == 1)
            read.last = item
        else:
            early = {"done_reason", *COUNTS, *DURATIONS} & item.keys()
            assert not early, f"{where}: {sorted(early)} before the end"
    assert cut or read.last is not None or read.error is not None, "no line says done"
    if read.last is not None and read.last["done_reason"] not in ("load", "unload"):
        said = read.content or read.thinking or read.calls
        assert not said or read.last["eval_count"] > 0, "an answer of no token says something"
        if read.logprobs:
            assert len(read.logprobs) == read.last["eval_count"], "not every token has a logprob"
    return read


def _object(raw: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), f"{where}: a key comes twice"
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{where}: {constant} is not JSON")

    assert raw.strip(), f"{where} is empty"
    try:
        item = json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except ValueError as error:
        raise AssertionError(f"{where} is not JSON: {error}: {raw!r}") from error
    assert isinstance(item, dict), f"{where} is no object"
    return item


def _moment(value: Any, where: str) -> datetime:
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)"
    assert isinstance(value, str), f"{where}: created_at is {value!r}"
    assert re.fullmatch(form, value), f"{where}: created_at {value!r} is not RFC 3339"
    return datetime.fromisoformat(value)


def _chat(item: dict[str, Any], read: Read, where: str, *, alone: bool) -> None:
    assert "response" not in item, f"{where}: response in a chat"
    message = item.get("message")
    assert isinstance(message, dict), f"{where}: message is {message!r}"
    extra = message.keys() - {"role", "content", "thinking", "tool_calls"}
    assert not extra, f"{where}: message has {sorted(extra)}"
    assert message.get("role") == "assistant", f"{where}: role is {message.get('role')!r}"
    _said(message, "content", item, read, where, alone=alone)
    calls = message.get("tool_calls")
    if "tool_calls" in message:
        assert isinstance(calls, list), f"{where}: tool_calls is {calls!r}"
        assert calls, f"{where}: tool_calls is empty"
    for call in calls or []:
        assert call.keys() == {"id", "function"}, f"{where}: a call has {sorted(call)}"
        assert re.fullmatch("[A-Za-z0-9]{9}", call["id"]), f"{where}: call id {call['id']!r}"
        assert call["id"] not in read.ids, f"{where}: call id {call['id']!r} comes twice"
        function = call["function"]
        keys = {"index", "name", "arguments"}
        assert function.keys() == keys, f"{where}: a function has {sorted(function)}"
        assert function["index"] == len(read.calls), f"{where}: call index {function['index']!r}"
        assert isinstance(function["name"], str), f"{where}: call name {function['name']!r}"
        assert function["name"], f"{where}: call name is empty"
        given = function["arguments"]
        assert isinstance(given, dict), f"{where}: arguments are {type(given).__name__}"
        read.calls.append((function["name"], given))
        read.ids.append(call["id"])


def _generate(item: dict[str, Any], read: Read, where: str, *, alone: bool) -> None:
    assert "message" not in item, f"{where}: message in a generate"
    _said(item, "response", item, read, where, alone=alone)


def _said(
    holder: dict[str, Any], key: str, item: dict[str, Any], read: Read, where: str, *, alone: bool
) -> None:
    text = holder.get(key)
    assert isinstance(text, str), f"{where}: {key} is {text!r}"
    if item["done"] and not alone:
        assert not text, f"{where}: text on the last line of a stream"
    read.content += text
    if "thinking" in holder:
        thinking = holder["thinking"]
        assert isinstance(thinking, str), f"{where}: thinking is {thinking!r}"
        assert thinking, f"{where}: thinking is empty"
        read.thinking += thinking
    if "logprobs" in item:
        entries = item["logprobs"]
        assert isinstance(entries, list), f"{where}: logprobs is {entries!r}"
        for token in [t for entry in entries for t in (entry, *entry.get("top_logprobs", []))]:
            assert isinstance(token.get("token"), str), f"{where}: a token is {token!r}"
            assert isinstance(token.get("logprob"), float), f"{where}: a logprob is {token!r}"
        read.logprobs += entries


def _end(item: dict[str, Any], where: str, *, alone: bool) -> None:
    reason = item.get("done_reason")
    assert reason in REASONS, f"{where}: done_reason is {reason!r}"
    figures = {key: item[key] for key in (*COUNTS, *DURATIONS) if key in item}
    if reason in ("load", "unload"):
        assert alone, f"{where}: {reason} after other lines"
        assert not figures, f"{where}: {reason} with {sorted(figures)}"
        return
    missing = {*COUNTS, *DURATIONS} - figures.keys()
    assert not missing, f"{where}: no {sorted(missing)}"
    for key, value in figures.items():
        assert type(value) is int, f"{where}: {key} is {value!r}"
        assert value >= 0, f"{where}: {key} is {value!r}"
    parts = sum(item[key] for key in DURATIONS[1:])
    assert parts <= item["total_duration"], f"{where}: the parts take longer than all: {figures}"
