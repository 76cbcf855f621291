"""Keep the letters of control tokens in a user's text from ever becoming control tokens.

Before rendering, each string of the request that contains such letters is marked with three
characters that occur nowhere in the request: an edge at its start, an edge at its end, and a
breaker inside each control token's letters. After rendering, text between edges is a piece to
tokenize as plain text. Whatever a template does to a string (cut it, strip it, search it), the
breaker stays inside the letters, so that no whole control token of the user's can survive
unmarked. Strings without such letters are left alone: their tokens are those of the plain render.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from os.path import commonprefix

from pydantic import JsonValue as Json

from ..engine.wire import Piece
from ..errors import RequestError
from .normalise import Turn

_CANDIDATES = (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Characters that Unicode will never assign, then the private planes."""


class ControlText:
    """Finds letters of control tokens in text. Built once per model."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        tokens = sorted({token for token in control_tokens if len(token) > 1})
        self._pattern = re.compile(_alternatives(tokens)) if tokens else None

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of each occurrence, overlapping ones too, longest at each start."""
        at = 0
        while self._pattern is not None and (hit := self._pattern.search(text, at)):
            yield hit.span()
            at = hit.start() + 1

    def match(self, text: str, at: int) -> int:
        """Return the length of the longest control token at `at`; 0 if there is none."""
        hit = self._pattern.match(text, at) if self._pattern is not None else None
        return hit.end() - hit.start() if hit else 0


def _alternatives(words: list[str]) -> str:
    """Return a pattern for any of the sorted words, longest first, that tries each letter once.

    A flat `a|b|c` over a thousand tokens would make a prompt of brackets cost seconds.
    """
    branches = []
    for _, group in itertools.groupby((w for w in words if w), key=lambda word: word[0]):
        group_words = list(group)
        shared = commonprefix(group_words)  # noqa: RUF071 (letter by letter is what is meant)
        rest = _alternatives([word[len(shared) :] for word in group_words])
        branches.append(re.escape(shared) + rest)
    if not branches:
        return ""
    optional = "" in words
    return (
        branches[0]
        if len(branches) == 1 and not optional
        else (f"(?:{'|'.join(branches)}){'?' if optional else ''}")
    )


class Marker:
    """Marks one request's strings, and reads the marks back from its rendered prompt."""

    def __init__(self, control: ControlText, request: Iterable[Json]) -> None:
        self._control = control
        used = set(chain.from_iterable(_strings(list(request))))
        free = (chr(code) for codes in _CANDIDATES for code in codes if chr(code) not in used)
        try:
            self._open, self._close, self._break = next(free), next(free), next(free)
        except StopIteration:
            raise RequestError(
                "the messages use every private character of Unicode", code="unsupported_content"
            ) from None
        self._edge = re.compile(f"[{self._open}{self._close}]")
        self._span = re.compile(f"{self._open}([^{self._open}{self._close}]*){self._close}")

    def turns(self, turns: list[Turn]) -> list[Turn]:
        """Return the turns with every string marked that needs it; roles and ids stay."""
        kept = ("role", "tool_call_id")
        return [{k: v if k in kept else self.value(v) for k, v in turn.items()} for turn in turns]

    def value(self, value: Json) -> Json:
        """Return a JSON value with every string in it, keys too, marked where needed."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.value(item) for key, item in value.items()}
        return value

    def text(self, text: str) -> str:
        """Return the text, marked if it has letters of control tokens."""
        breaks = sorted({start + 1 for start, _ in self._control.find(text)})
        if not breaks:
            return text
        parts = [text[a:b] for a, b in zip([0, *breaks], [*breaks, len(text)], strict=True)]
        body = self._break.join(parts)
        # Edges go inside the white space, so that a template may still strip it.
        inner = body.strip()
        start = body.index(inner)
        end = start + len(inner)
        return f"{body[:start]}{self._open}{inner}{self._close}{body[end:]}"

    def split(self, rendered: str) -> list[Piece]:
        """Return the rendered prompt as pieces: (text, may it hold control tokens)."""
        pieces: list[Piece] = []
        at = 0
        for span in self._span.finditer(rendered):
            self._outside(rendered[at : span.start()], pieces)
            pieces.append((span.group(1).replace(self._break, ""), False))
            at = span.end()
        self._outside(rendered[at:], pieces)
        return _joined(pieces)

    def _outside(self, text: str, pieces: list[Piece]) -> None:
        """Text between spans: the template's own, and strings that it cut.

        There a breaker tells where the user's letters of a control token begin: one before it.
        """
        first, *others = self._edge.sub("", text).split(self._break)
        whole = "".join([first, *others])
        at, place = 0, len(first)
        for part in others:
            start, place = place - 1, place + len(part)
            length = self._control.match(whole, start) if start >= 0 else 0
            end = start + length
            if end <= at or not length:
                continue
            pieces += [(whole[at:start], True), (whole[max(at, start) : end], False)]
            at = end
        pieces.append((whole[at:], True))


def _strings(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)


def _joined(pieces: list[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for text, special in pieces:
        if not text:
            continue
        if joined and joined[-1][1] == special:
            joined[-1] = (joined[-1][0] + text, special)
        else:
            joined.append((text, special))
    return joined
