"""Calls in JSON values, and values back to the text of a call's arguments."""

from __future__ import annotations

import json
from typing import NamedTuple


class Found(NamedTuple):
    """A call as the model wrote it. `id` is "" where it gave none."""

    name: str
    id: str
    arguments: str


def loads(text: str) -> object:
    """Return the value of a JSON text; None if it is none (NaN and infinities are none)."""
    try:
        value: object = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value


def compact(value: object) -> str:
    """Return a value as JSON text that any client can decode, half surrogates escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def calls_in(value: object) -> list[Found]:
    """Read one call or a list of calls; an empty list if any of them is none.

    Models say `arguments` or `parameters`, an object or its JSON text, and some wrap both in
    `function` as OpenAI does.
    """
    calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


def _call(item: object) -> Found | None:
    if not isinstance(item, dict):
        return None
    call_id = item.get("id")
    function = item.get("function")
    if isinstance(function, dict):
        item = function
    name = item.get("name", function if isinstance(function, str) else None)
    arguments = item.get("arguments", item.get("parameters"))
    if isinstance(arguments, str):
        arguments = loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    try:
        name.encode()
    except UnicodeEncodeError:
        return None
    return Found(name, call_id if isinstance(call_id, str) else "", compact(arguments))


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")
