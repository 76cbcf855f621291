"""Calls written as a Python list: [f(a="x"), g(b=[1, 2])]. Llama 4 and Gemma write them.

Read with Python's own parser, which executes nothing; only literals are taken.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Container

from .calls import Found, compact

MAX_DEPTH = 40
MAX_CHARS = 200_000
"""A longer list is text: Python's parser has a stack of its own."""
MAX_HEAD = 300
_HEAD = re.compile(r"\s*\[\s*([A-Za-z_][\w.]*)\s*")
_END_OF_HEAD = re.compile(r"[^\w\s.\[]")
_OUTSIDE = re.compile(r"""["'()\[\]{}]""")
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_NAMES = {"true": True, "false": False, "null": None, "none": None}


class PythonicBody:
    """Brackets counted outside strings, then the whole parsed once."""

    def __init__(self, offered: Container[str] | None) -> None:
        """`offered` None: any name is a call's."""
        self.closed = self.failed = False
        self._offered = offered
        self._parts: list[str] = []
        self._n = 0
        self._in_head = True
        self._stack: list[str] = []
        self._quote = ""
        self._escaped = False

    def feed(self, text: str) -> int:
        if self._in_head:
            return self._head(text)
        return self._rest(text)

    def calls(self) -> list[Found]:
        names, calls = self._offered, read("".join(self._parts))
        return calls if names is None or all(call.name in names for call in calls) else []

    def _head(self, text: str) -> int:
        hit = _END_OF_HEAD.search(text)
        end = min(MAX_HEAD - self._n, hit.start() if hit else len(text))
        self._take(text[:end])
        if end == len(text):
            return end
        found = _HEAD.fullmatch("".join(self._parts))
        named = found is not None and (self._offered is None or found.group(1) in self._offered)
        if text[end] != "(" or not named:
            self.failed = True
            return end
        self._in_head = False
        self._stack = ["]"]
        return end + self._rest(text[end:])

    def _rest(self, text: str) -> int:
        room = MAX_CHARS - self._n
        at, text = 0, text[:room]
        while at < len(text) and not (self.closed or self.failed):
            at = self._string(text, at) if self._quote else self._code(text, at)
        self._take(text[:at])
        self.failed = self.failed or (not self.closed and self._n >= MAX_CHARS)
        return at

    def _take(self, text: str) -> None:
        self._parts.append(text)
        self._n += len(text)

    def _code(self, text: str, at: int) -> int:
        hit = _OUTSIDE.search(text, at)
        if hit is None:
            return len(text)
        char = hit.group()
        if char in "\"'":
            self._quote = char
        elif char in _PAIRS:
            self._stack.append(_PAIRS[char])
            self.failed = len(self._stack) > MAX_DEPTH
        elif self._stack.pop() != char:
            self.failed = True
        else:
            self.closed = not self._stack
        return hit.end()

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        for place in range(at, len(text)):
            if text[place] == "\\":
                self._escaped = True
                return place + 1
            if text[place] == self._quote:
                self._quote = ""
                return place + 1
        return len(text)


def read(text: str) -> list[Found]:
    """Return the calls of a list; an empty list if it holds anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.List):
            return []
        return [_call(item) for item in tree.elts]
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []


def _call(node: ast.expr) -> Found:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call by keywords")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError("no plain keyword")
        arguments[keyword.arg] = _value(keyword.value)
    return Found(ast.unparse(node.func), "", compact(arguments))


def _value(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as value):
            if isinstance(value, float) and not abs(value) < float("inf"):
                raise ValueError("not a number of JSON")
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(k): _value(v) for k, v in zip(keys, values, strict=True)}
    raise ValueError("not a literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("not a key of JSON")
