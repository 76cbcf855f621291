"""Edit YAML by splices at the places that PyYAML reports; every other byte stays.

A library that writes YAML back would change quotes, widths and blank lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from edgekit.connect.values import Edit, NotEditableError, Pick, Step, built

_ALIAS = re.compile(r"[\s:,-]*\*[^\s,\]}]+")
_LINE_REST = re.compile(r"[ \t]*(?:#[^\r\n]*)?")


class _Loader(yaml.SafeLoader):
    """Reads tags that it does not know as their plain values."""


def _tagged(loader: _Loader, tag: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return tag, loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return tag, loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return tag, loader.construct_scalar(node)


_Loader.add_multi_constructor("!", _tagged)


def load(text: str) -> Any:
    """Return the document as plain data; None for an empty one. Raises NotEditableError."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad(error) from None


def edit(text: str, edits: Sequence[Edit]) -> str:
    """Return the text with the edits done. Raises NotEditableError."""
    for one in edits:
        try:
            root = yaml.compose(text, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise _bad(error) from None
        text = _Editor(text).set(root, one)
    return text


def _bad(error: Exception) -> NotEditableError:
    mark = getattr(error, "problem_mark", None)
    return NotEditableError(f"not YAML at line {mark.line + 1}" if mark else f"not YAML: {error}")


class _Editor:
    """One edit of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.newline = "\r\n" if "\r\n" in text else "\n"

    def set(self, root: yaml.Node | None, one: Edit) -> str:
        if root is None or _is_empty(root):
            gap = "" if not self.text or self.text.endswith("\n") else self.newline
            return self.text + gap + self._block(built(one.path, one.value), 0) + self.newline
        node, in_flow, after = root, False, 0
        for depth, step in enumerate(one.path):
            if _is_null(node):
                return self._replace(node, built(one.path[depth:], one.value), in_flow, after)
            in_flow = in_flow or _is_flow(node)
            found = self._child(node, step)
            if found is None:
                return self._insert(node, one.path[depth:], one.value, in_flow)
            node, after = found
            if node.start_mark.index < after:
                raise NotEditableError(f"{step!r} is an alias")
        return self._replace(node, one.value, in_flow, after)

    def _child(self, node: yaml.Node, step: Step) -> tuple[yaml.Node, int] | None:
        """Return a child, and the end of what stands before it."""
        if isinstance(step, Pick):
            if not isinstance(node, yaml.SequenceNode):
                raise NotEditableError(f"a list was expected where {step.value!r} goes")
            before = node.start_mark.index
            for item in node.value:
                if isinstance(item, yaml.MappingNode) and any(
                    key.value == step.key and value.value == step.value for key, value in item.value
                ):
                    return item, before
                before = self._end(item, before)
            return None
        if not isinstance(node, yaml.MappingNode):
            raise NotEditableError(f"a table was expected where {step!r} goes")
        found = [(value, key.end_mark.index) for key, value in node.value if key.value == step]
        return found[-1] if found else None

    def _end(self, node: yaml.Node, after: int) -> int:
        """Return where a node's own text ends, without the comments that follow."""
        if node.start_mark.index < after:
            found = _ALIAS.match(self.text, after)
            if not found:
                raise NotEditableError("an alias was not found")
            return found.end()
        if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
            if isinstance(node, yaml.MappingNode):
                key, value = node.value[-1]
                return self._end(value, key.end_mark.index)
            before = node.start_mark.index
            if len(node.value) > 1:
                before = node.value[-2].start_mark.index
            return self._end(node.value[-1], before)
        start, end = node.start_mark.index, node.end_mark.index
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            return start + len(self.text[start:end].rstrip())
        # An empty value stands at the next token; its colon is its end.
        return end if end > start or after == 0 else self.text.index(":", after) + 1

    def _insert(self, node: yaml.Node, path: tuple[Step, ...], value: Any, in_flow: bool) -> str:
        inner = built(path, value)
        start = node.start_mark.index
        if in_flow or _is_flow(node):
            new = json.dumps(inner, ensure_ascii=False)[1:-1]
            if not node.value:
                return f"{self.text[: start + 1]}{new}{self.text[start + 1 :]}"
            last = node.value[-1]
            child = last[1] if isinstance(last, tuple) else last
            end = self._end(child, last[0].end_mark.index if isinstance(last, tuple) else start)
            return f"{self.text[:end]}, {new}{self.text[end:]}"
        end = self._end(node, 0)
        rest = _LINE_REST.match(self.text, end)
        end = rest.end() if rest else end
        indent = node.start_mark.column
        new = self._block(inner, indent)
        return f"{self.text[:end]}{self.newline}{' ' * indent}{new}{self.text[end:]}"

    def _replace(self, node: yaml.Node, value: Any, in_flow: bool, after: int) -> str:
        end, start = self._end(node, after), node.start_mark.index
        if start > end or _is_empty(node):
            start = end
        if in_flow or not isinstance(value, dict | list) or not value:
            new = json.dumps(value, ensure_ascii=False) if in_flow else self._block(value, 0)
            return f"{self.text[:start]}{' ' if start == end else ''}{new}{self.text[end:]}"
        line = self.text[self.text.rfind("\n", 0, start) + 1 : start]
        opens_line = not line.strip(" -")
        indent = len(line) if opens_line else len(line) - len(line.lstrip(" ")) + 2
        new = self._block(value, indent)
        if opens_line:
            return f"{self.text[:start]}{new}{self.text[end:]}"
        gap = self.text[:start].rstrip(" ")
        return f"{gap}{self.newline}{' ' * indent}{new}{self.text[end:]}"

    def _block(self, value: Any, indent: int) -> str:
        """Return YAML whose further lines are indented; the first is where it is put."""
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)
        lines = text.removesuffix("...\n").rstrip("\n").split("\n")
        return (self.newline + " " * indent).join(lines)


def _is_flow(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _is_empty(node: yaml.Node) -> bool:
    return bool(isinstance(node, yaml.ScalarNode) and node.start_mark.index == node.end_mark.index)
