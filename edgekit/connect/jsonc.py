"""Edit JSON with comments and trailing commas, leaving every other byte alone.

There is no kept Python library that changes JSONC in place, so this is ours: a scanner that notes
where each value stands, and splices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.connect.values import Edit, NotEditableError, Pick, Step, built, position

_TRIVIA = re.compile(r"(?:[\s\ufeff]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_LINE_REST = re.compile(r"(?:[ \t]|/\*[^\n]*?\*/)*(?://[^\r\n]*)?")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_SCALAR = re.compile(r"-?\d[\d.eE+-]*|true|false|null")
_MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Node:
    """A value: where it stands, what it is, and for containers the nodes inside."""

    start: int
    end: int
    value: Any
    children: tuple[tuple[str, Node], ...] = ()
    """Members of an object with their keys; items of a list with an empty key."""
    comma_end: int | None = None
    """End of a comma after the last child."""


def parse(text: str) -> Node:
    """Read a whole document. Raises NotEditableError with the line that cannot be read."""
    node = _value(text, _skip(text, 0), 0)
    end = _skip(text, node.end)
    if end != len(text):
        raise _bad(text, end)
    return node


def load(text: str) -> Any:
    """Return the document as plain data; None for an empty one."""
    return None if _skip(text, 0) == len(text) else parse(text).value


def edit(text: str, edits: Sequence[Edit]) -> str:
    """Return the text with the edits done. Raises NotEditableError."""
    for one in edits:
        text = _one(text, one)
    return text


def _one(text: str, one: Edit) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    if _skip(text, 0) == len(text):
        gap = newline if text and not text.endswith("\n") else ""
        return text + gap + _dump(built(one.path, one.value), "", newline, "  ") + newline
    node, unit = parse(text), _unit(text)
    for depth, step in enumerate(one.path):
        child = _child(node, step)
        if child is None:
            if node.value is None:
                inner = built(one.path[depth:], one.value)
                return _splice(text, node.start, node.end, inner, newline, unit)
            return _insert(text, node, one.path[depth:], one.value, newline, unit)
        node = child
    if node.value == one.value and type(node.value) is type(one.value):
        return text
    return _splice(text, node.start, node.end, one.value, newline, unit)


def _child(node: Node, step: Step) -> Node | None:
    if node.value is None:
        return None
    if isinstance(step, Pick):
        if not isinstance(node.value, list):
            raise NotEditableError(f"a list was expected where {step.value!r} goes")
        at = position(node.value, step)
        return None if at is None else node.children[at][1]
    if not isinstance(node.value, dict):
        raise NotEditableError(f"an object was expected where {step!r} goes")
    # Of keys that are there twice, readers take the last.
    return next((c for key, c in reversed(node.children) if key == step), None)


def _insert(
    text: str, node: Node, path: tuple[Step, ...], value: Any, newline: str, unit: str
) -> str:
    """Add a child at the end of a container, after the comment of the line before it."""
    step, rest = path[0], path[1:]
    outer = _indent(text, node.start)
    indent = outer + unit
    if node.children and _line_start(text, node.children[0][1].start) > node.start:
        indent = _indent(text, node.children[0][1].start)
    if isinstance(step, Pick):
        new = _dump(built(path, value)[0], indent, newline, unit)
    else:
        inner = built(rest, value)
        new = f"{json.dumps(step, ensure_ascii=False)}: {_dump(inner, indent, newline, unit)}"
    comma, last = "", node.start
    if node.children:
        last = node.children[-1][1].end
        at = _line_rest(text, node.comma_end or last)
        # A file that ends its lists with a comma goes on doing so.
        comma, new = ("", new + ",") if node.comma_end else (",", new)
    else:
        at = node.start + len(text[node.start : node.end - 1].rstrip())
        last = at
    tail = "" if "\n" in text[at : node.end] else newline + outer
    return f"{text[:last]}{comma}{text[last:at]}{newline}{indent}{new}{tail}{text[at:]}"


def _splice(text: str, start: int, end: int, value: Any, newline: str, unit: str) -> str:
    return text[:start] + _dump(value, _indent(text, start), newline, unit) + text[end:]


def _dump(value: Any, indent: str, newline: str, unit: str) -> str:
    lines = json.dumps(value, indent=unit, ensure_ascii=False).split("\n")
    return (newline + indent).join(lines)


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _indent(text: str, at: int) -> str:
    line = text[_line_start(text, at) : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(text: str) -> str:
    """Return what this file indents by; two spaces if it does not say."""
    found = re.search(r"[{\[][^\n]*\n([ \t]+)[^\s]", text)
    return found[1] if found else "  "


def _line_rest(text: str, at: int) -> int:
    """Return the end of the comments that follow on this line."""
    found = _LINE_REST.match(text, at)
    return found.end() if found and found[0].strip() else at


def _skip(text: str, at: int) -> int:
    found = _TRIVIA.match(text, at)
    return found.end() if found else at


def _value(text: str, at: int, depth: int) -> Node:
    if depth > _MAX_DEPTH:
        raise NotEditableError("nested too deeply")
    if text[at : at + 1] in ("{", "["):
        return _container(text, at, depth)
    found = _STRING.match(text, at) or _SCALAR.match(text, at)
    if not found:
        raise _bad(text, at)
    try:
        return Node(at, found.end(), json.loads(found[0]))
    except ValueError:
        raise _bad(text, at) from None


def _container(text: str, start: int, depth: int) -> Node:
    is_object = text[start] == "{"
    close = "}" if is_object else "]"
    children: list[tuple[str, Node]] = []
    comma_end: int | None = None
    at = _skip(text, start + 1)
    while text[at : at + 1] != close:
        if children and comma_end is None:
            raise _bad(text, at)
        key = ""
        if is_object:
            found = _STRING.match(text, at)
            colon = _skip(text, found.end()) if found else at
            if not found or text[colon : colon + 1] != ":":
                raise _bad(text, at)
            key, at = json.loads(found[0]), _skip(text, colon + 1)
        node = _value(text, at, depth + 1)
        children.append((key, node))
        at, comma_end = _skip(text, node.end), None
        if text[at : at + 1] == ",":
            comma_end = at + 1
            at = _skip(text, at + 1)
    value = {k: n.value for k, n in children} if is_object else [n.value for _, n in children]
    return Node(start, at + 1, value, tuple(children), comma_end)


def _bad(text: str, at: int) -> NotEditableError:
    return NotEditableError(f"not JSON at line {text.count(chr(10), 0, at) + 1}")
