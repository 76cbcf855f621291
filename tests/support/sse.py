"""Read server-sent events and hold a chat stream to the contract of its strictest readers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import httpx


def events(lines: Iterable[str], *, comments: bool = False) -> list[Any]:
    """Return the events: parsed JSON, "[DONE]", and, with `comments`, comment lines as they are.

    A keep-alive may come anywhere on a busy machine, so only tests about it look at comments.
    """
    found: list[Any] = []
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
        elif line:
            assert line.startswith(": "), line
            if comments:
                found.append(line)
    return found


def post(
    url: str, body: object, *, comments: bool = False, **options: Any
) -> tuple[httpx.Response, list[Any]]:
    """Post and read a whole stream."""
    with httpx.stream("POST", url, json=body, timeout=20, **options) as response:
        return response, events(response.iter_lines(), comments=comments)


def check_chat_stream(found: list[Any], *, usage: bool = False, n: int = 1) -> None:
    """Assert the streaming contract over one finished stream."""
    assert found[-1] == "[DONE]"
    chunks = [item for item in found[:-1] if not isinstance(item, str)]
    if usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= last["usage"].keys()
        assert "cached_tokens" in last["usage"]["prompt_tokens_details"]
    assert all("usage" not in chunk for chunk in chunks)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    for index in range(n):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        deltas = [choice["delta"] for choice in choices]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert all(None not in delta.values() for delta in deltas)
        assert all("role" not in delta for delta in deltas[1:])
        assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] in ("stop", "length", "tool_calls")
        assert deltas[-1] == {}
        _check_calls([call for delta in deltas for call in delta.get("tool_calls", [])])


def _check_calls(deltas: list[Any]) -> None:
    seen = -1
    for delta in deltas:
        if delta["index"] == seen:
            assert delta.keys() == {"index", "function"}
            assert delta["function"].keys() == {"arguments"}
        else:
            assert delta["index"] == seen + 1
            seen += 1
            assert delta.keys() == {"index", "id", "type", "function"}
            assert re.fullmatch("[A-Za-z0-9]{9}", delta["id"])
            assert delta["type"] == "function"
            assert delta["function"].keys() == {"name", "arguments"}
