"""The requests of a self-test in each dialect, and how each says that a prompt is too long."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.connect.answers import (
    Answer,
    Call,
    Event,
    must,
    read_chat,
    read_messages,
    read_responses,
)

Body = dict[str, Any]

TOOL = "read_file"
_ABOUT = "Read a file of the project."
_PARAMETERS: Body = {
    "type": "object",
    "properties": {"path": {"type": "string", "enum": ["README.md"]}},
    "required": ["path"],
}
_ASK = "Read README.md with the tool."
_RESULT = "edgekit deploys language models."


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one API is asked and read."""

    path: str
    read: Callable[[Sequence[Event]], Answer]
    plain: Callable[[str, str, int], Body]
    """(model, text, most tokens) -> a streamed request."""
    tools: Callable[[str], Body]
    """A streamed request that must be answered by a call of TOOL."""
    result: Callable[[str, Call], Body]
    """The next request, with the call and its result."""
    check_overflow: Callable[[int, Any], None]
    """(HTTP status, body): raise BrokenContractError if clients would not understand it."""


def _chat_plain(model: str, text: str, limit: int) -> Body:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": limit,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _chat_tools(model: str) -> Body:
    function = {"name": TOOL, "description": _ABOUT, "parameters": _PARAMETERS}
    tools = [{"type": "function", "function": function}]
    return _chat_plain(model, _ASK, 128) | {"tools": tools, "tool_choice": "required"}


def _chat_result(model: str, call: Call) -> Body:
    function = {"name": call.name, "arguments": call.arguments}
    said = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call.id, "type": "function", "function": function}],
    }
    body = _chat_tools(model) | {"tool_choice": "none", "max_tokens": 16}
    result = {"role": "tool", "tool_call_id": call.id, "content": _RESULT}
    return body | {"messages": [*body["messages"], said, result]}


def _chat_overflow(status: int, body: Any) -> None:
    error = _error(status, body)
    code, message = error.get("code"), str(error.get("message"))
    must(code == "context_length_exceeded", f"its code is {code!r}, not context_length_exceeded")
    must(
        re.search(r"maximum context length is \d+ tokens", message),
        f"its message does not say 'maximum context length is N tokens': {message[:80]}",
    )


def _responses_plain(model: str, text: str, limit: int) -> Body:
    return {
        "model": model,
        "input": [_responses_user(text)],
        "max_output_tokens": limit,
        "temperature": 0,
        "store": False,
        "stream": True,
    }


def _responses_user(text: str) -> Body:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content}


def _responses_tools(model: str) -> Body:
    tool = {
        "type": "function",
        "name": TOOL,
        "description": _ABOUT,
        "parameters": _PARAMETERS,
        "strict": False,
    }
    body = _responses_plain(model, _ASK, 128)
    return body | {"tools": [tool, {"type": "web_search"}], "tool_choice": "required"}


def _responses_result(model: str, call: Call) -> Body:
    said = {
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }
    result = {"type": "function_call_output", "call_id": call.id, "output": _RESULT}
    body = _responses_tools(model) | {"tool_choice": "none", "max_output_tokens": 16}
    return body | {"input": [*body["input"], said, result]}


def _messages_plain(model: str, text: str, limit: int) -> Body:
    return {
        "model": model,
        "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}],
        "max_tokens": limit,
        "temperature": 0,
        "stream": True,
    }


def _messages_tools(model: str) -> Body:
    tool = {"name": TOOL, "description": _ABOUT, "input_schema": _PARAMETERS}
    body = _messages_plain(model, _ASK, 128)
    return body | {"tools": [tool], "tool_choice": {"type": "any"}}


def _messages_result(model: str, call: Call) -> Body:
    import json

    use = {
        "type": "tool_use",
        "id": call.id,
        "name": call.name,
        "input": json.loads(call.arguments),
    }
    result = {"type": "tool_result", "tool_use_id": call.id, "content": _RESULT}
    body = _messages_tools(model) | {"tool_choice": {"type": "none"}, "max_tokens": 16}
    said = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return body | {"messages": body["messages"] + said}


def _messages_overflow(status: int, body: Any) -> None:
    error = _error(status, body)
    must(body.get("type") == "error", "its body's type is not error")
    message = str(error.get("message"))
    must(
        re.search(r"prompt is too long: \d+ tokens > \d+ maximum", message),
        f"its message does not say 'prompt is too long: M tokens > N maximum': {message[:80]}",
    )


def _error(status: int, body: Any) -> dict[str, Any]:
    must(status == 400, f"it is HTTP {status}, not 400")
    error = body.get("error") if isinstance(body, dict) else None
    must(isinstance(error, dict), "its body has no error object")
    assert isinstance(error, dict)
    return error


DIALECTS: dict[str, Dialect] = {
    "chat": Dialect(
        "/v1/chat/completions", read_chat, _chat_plain, _chat_tools, _chat_result, _chat_overflow
    ),
    "responses": Dialect(
        "/v1/responses",
        read_responses,
        _responses_plain,
        _responses_tools,
        _responses_result,
        _chat_overflow,
    ),
    "messages": Dialect(
        "/v1/messages",
        read_messages,
        _messages_plain,
        _messages_tools,
        _messages_result,
        _messages_overflow,
    ),
}
