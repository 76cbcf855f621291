"""What a client's file must hold: edits as data, filled in with what the server said.

An edit is a path and a value. A step of the path is a key, or `Pick(key, value)`: the item of a
list whose `key` is `value`, added at the end when there is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PLACE = re.compile(r"\{([a-z_0-9]+)\}")


@dataclass(frozen=True, slots=True)
class Pick:
    """The item of a list that has this value under this key."""

    key: str
    value: str


Step = str | Pick


@dataclass(frozen=True, slots=True)
class Edit:
    """Set the value at a path; everything beside it stays."""

    path: tuple[Step, ...]
    value: Any


class NotEditableError(ValueError):
    """The text cannot be edited without a risk to what stands in it; the message says why."""


def filled(value: Any, words: Mapping[str, object]) -> Any:
    """Return `value` with its placeholders replaced, also in keys.

    A text that is one placeholder, such as "{n_ctx}", becomes the word itself with its type.
    Braces around anything that is no known word stay as they are.
    """
    if isinstance(value, str):
        whole = _PLACE.fullmatch(value)
        if whole and whole[1] in words:
            return words[whole[1]]
        return _PLACE.sub(lambda m: str(words[m[1]]) if m[1] in words else m[0], value)
    if isinstance(value, Mapping):
        return {filled(k, words): filled(v, words) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(item, words) for item in value]
    return value


def apply(data: Any, edits: Sequence[Edit]) -> Any:
    """Return a copy of plain data with the edits done: what every editor of text must arrive at.

    Raises NotEditableError where a step of a path meets something that cannot hold it.
    """
    for edit in edits:
        data = _set(data, edit.path, edit.value)
    return data


def _set(data: Any, path: tuple[Step, ...], value: Any) -> Any:
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(step, Pick):
        if data is None:
            data = []
        if not isinstance(data, list):
            raise NotEditableError(f"a list was expected where {step.value!r} goes")
        at = position(data, step)
        if at is None:
            return [*data, _set({step.key: step.value}, rest, value)]
        return [*data[:at], _set(data[at], rest, value), *data[at + 1 :]]
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise NotEditableError(f"a table was expected where {step!r} goes")
    return {**data, step: _set(data.get(step), rest, value)}


def position(items: Sequence[Any], pick: Pick) -> int | None:
    """Return where in a list the picked item stands; None if nowhere."""
    for index, item in enumerate(items):
        if isinstance(item, Mapping) and item.get(pick.key) == pick.value:
            return index
    return None


def built(path: tuple[Step, ...], value: Any) -> Any:
    """Return the value wrapped in what the rest of its path needs, from nothing."""
    return _set(None, path, value)
