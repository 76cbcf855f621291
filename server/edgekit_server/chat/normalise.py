"""Bring what clients send into the one form that every chat template can render.

Templates of Mistral, Gemma, Qwen and Llama raise, print Python lists or lose text on shapes that
real agents send: `developer` turns, several system turns, two user turns in a row, arrays of
text, JSON arguments as a string, null content. The rules, in order:

1. `developer` is `system`; `function` is `tool`.
2. Arrays of text parts become one text; null content becomes "".
3. System turns before the first assistant turn become one leading system turn. A later one goes,
   tagged, into the neighbouring user turn: hoisting it would rewrite the prefix and lose its KV.
4. Neighbouring user turns are joined; so are neighbouring assistant turns.
5. Tool-call arguments become objects; call ids get the nine letters that Mistral insists on; a
   result without an id gets that of its call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import JsonValue as Json

from ..errors import RequestError
from .parser import ID_LETTERS, ID_PATTERN

Turn = dict[str, Json]
"""role, content, and where they apply: tool_calls, tool_call_id, name."""

_ROLES = {"developer": "system", "function": "tool"}
_KNOWN = ("system", "user", "assistant", "tool")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def normalise(messages: Sequence[Mapping[str, Json]], *, reasoning: bool = False) -> list[Turn]:
    """Return turns that any template takes; RequestError names the message that cannot be used.

    `reasoning`: keep an assistant's `reasoning_content`, for families whose templates render it.
    """
    turns = [_turn(message, at) for at, message in enumerate(messages)]
    if reasoning:
        for turn, message in zip(turns, messages, strict=True):
            thought = message.get("reasoning_content") or message.get("reasoning")
            if turn["role"] == "assistant" and isinstance(thought, str):
                turn["reasoning_content"] = thought
    turns = joined(_place_system(_answered(turns)))
    if not turns:
        raise RequestError("messages is empty", param="messages", code="empty_messages")
    return turns


def call_id_of(foreign: str) -> str:
    """Return the id itself if it has nine letters and digits, else nine that stand for it."""
    if ID_PATTERN.fullmatch(foreign):
        return foreign
    number = int.from_bytes(hashlib.blake2b(foreign.encode(), digest_size=8).digest(), "big")
    letters = []
    for _ in range(9):
        number, digit = divmod(number, len(ID_LETTERS))
        letters.append(ID_LETTERS[digit])
    return "".join(letters)


def _turn(message: Mapping[str, Json], at: int) -> Turn:
    role = message.get("role")
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role not in _KNOWN:
        raise RequestError(
            f"messages[{at}].role is {role!r}; use system, developer, user, assistant or tool",
            param=f"messages[{at}].role",
            code="invalid_role",
        )
    content = _content(message.get("content"), at)
    turn: Turn = {"role": role, "content": content}
    if role == "assistant":
        old = message.get("function_call")
        given_calls: Json = [{"function": old}] if isinstance(old, dict) else []
        calls = _calls(message.get("tool_calls") or given_calls, at)
        if calls:
            turn["tool_calls"] = cast("Json", calls)
            # Clients replay the empty text beside a call as null, "" or " ": one prefix for all.
            turn["content"] = content if content.strip() else ""
    if role == "tool":
        given = message.get("tool_call_id")
        if isinstance(given, str) and given:
            turn["tool_call_id"] = call_id_of(given)
        if isinstance(message.get("name"), str):
            turn["name"] = message["name"]
    return turn


def _content(content: Json, at: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(
            f"messages[{at}].content must be a string or an array of parts",
            param=f"messages[{at}].content",
            code="invalid_content",
        )
    texts = []
    for number, part in enumerate(content):
        where = f"messages[{at}].content[{number}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        text = (part.get("text", part.get("refusal"))) if isinstance(part, dict) else None
        if kind in _TEXT_PARTS and isinstance(text, str):
            texts.append(text)
        else:
            raise RequestError(
                f"{where} is of type {kind!r}; this model takes text only",
                param=where,
                code="unsupported_content",
            )
    return "\n".join(texts)


def _calls(calls: Json, at: int) -> list[Turn]:
    made: list[Turn] = []
    for number, call in enumerate(calls if isinstance(calls, list) else []):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not name:
            where = f"messages[{at}].tool_calls[{number}]"
            raise RequestError(f"{where} has no function name", param=where, code="invalid_call")
        call_id = call.get("id")
        made.append(
            {
                "id": call_id_of(call_id if isinstance(call_id, str) else f"{at}.{number}"),
                "type": "function",
                "function": {"name": name, "arguments": _arguments(function.get("arguments"))},
            }
        )
    return made


def _arguments(arguments: Json) -> Json:
    """Return an object where there is one. Text that is no JSON stays text: templates print it."""
    if not isinstance(arguments, str):
        return arguments if arguments is not None else {}
    if not arguments.strip():
        return {}
    try:
        value = cast("Json", json.loads(arguments))
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _answered(turns: list[Turn]) -> list[Turn]:
    """Give results without an id that of the call they answer: by name, else the next one."""
    open_calls: list[tuple[str, Json]] = []
    made: list[Turn] = []
    for turn in turns:
        if turn["role"] == "tool" and "tool_call_id" not in turn and open_calls:
            named = (c for c in open_calls if c[0] == turn.get("name"))
            turn = {**turn, "tool_call_id": next(named, open_calls[0])[1]}
        if turn["role"] == "tool":
            open_calls = [c for c in open_calls if c[1] != turn.get("tool_call_id")]
        for call in _list(turn.get("tool_calls")):
            if isinstance(call, dict) and isinstance(function := call["function"], dict):
                open_calls.append((str(function["name"]), call["id"]))
        made.append(turn)
    return made


def _place_system(turns: list[Turn]) -> list[Turn]:
    first_answer = next(
        (at for at, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns)
    )
    leading = [_text(t) for t in turns[:first_answer] if t["role"] == "system" and t["content"]]
    placed: list[Turn] = []
    if leading:
        placed.append({"role": "system", "content": "\n\n".join(leading)})
    for at, turn in enumerate(turns):
        if turn["role"] != "system":
            placed.append(turn)
        elif at >= first_answer and turn["content"]:
            tagged = f"<system>\n{_text(turn)}\n</system>"
            last = placed[-1]
            if last["role"] == "tool":
                # Most templates allow nothing but an answer after a result.
                placed[-1] = {**last, "content": f"{_text(last)}\n\n{tagged}"}
            else:
                placed.append({"role": "user", "content": tagged})
    return placed


def joined(turns: list[Turn]) -> list[Turn]:
    """Return the turns with neighbouring ones of the user, and of the assistant, made one."""
    made: list[Turn] = []
    for turn in turns:
        last = made[-1] if made else None
        if (
            last is None
            or last["role"] != turn["role"]
            or turn["role"] not in ("user", "assistant")
        ):
            made.append(turn)
            continue
        content = "\n\n".join(text for text in (_text(last), _text(turn)) if text)
        merged: Turn = {**last, "content": content}
        calls = [*_list(last.get("tool_calls")), *_list(turn.get("tool_calls"))]
        if calls:
            merged |= {"tool_calls": calls, "content": content if content.strip() else ""}
        thoughts = [t["reasoning_content"] for t in (last, turn) if "reasoning_content" in t]
        if thoughts:
            merged["reasoning_content"] = "\n\n".join(map(str, thoughts))
        made[-1] = merged
    return made


def _text(turn: Turn) -> str:
    return cast("str", turn["content"])


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
