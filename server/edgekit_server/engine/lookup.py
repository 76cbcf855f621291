"""Guess the next tokens from what the request has already: prompt and answer. Pure.

Two ways. A cursor: the answer follows an earlier stretch token by token, as an edited file
follows the original; where the answer goes another way, the cursor waits close by for a token
that it knows. Else the place where the last few tokens were seen before.
"""

from __future__ import annotations

from array import array
from enum import IntEnum

import numpy as np

LONG, SHORT = 4, 2
"""Lengths of the n-grams that are indexed. Of (8,4) (6,3) (5,2) (4,2), these gave the fewest steps
on renames in, and continuations of, the standard library (10.3 and 1.42 tokens per step)."""
AT_ONCE = 4096
"""Positions indexed per call, so that a long prompt never holds up a step (about 0.3 ms)."""
NEAR = 24
"""How far a cursor that lost its place looks ahead, and how many tokens it stays lost."""
SURE = 4
"""Tokens in a row that make a found place a followed one."""
_FACTOR, _SPREAD = 0x9E3779B1, 0xD6E8FEB86659FD93
_WORD = (1 << 64) - 1


class Source(IntEnum):
    """Where a guess comes from; each has its own rate of success."""

    SHORT = 0
    LONG = 1
    RESUMED = 2
    FOLLOWED = 3
    MODEL = 4


class _Table:
    """Hash of n tokens -> the latest position after them; 0 is none. Collisions overwrite."""

    def __init__(self, size: int, n_tokens: int) -> None:
        self.size = size
        bits = max(8, (2 * n_tokens - 1).bit_length())
        self._shift = 64 - bits
        self._places = np.zeros(1 << bits, np.int32)  # untouched pages cost nothing
        self._view = self._places.data

    def _slot(self, tokens: array[int], end: int) -> int:
        value = 0
        for token in tokens[end - self.size : end]:
            value = value * _FACTOR + token
        return ((value * _SPREAD) & _WORD) >> self._shift

    def put(self, tokens: array[int], end: int) -> None:
        if end >= self.size:
            self._view[self._slot(tokens, end)] = end

    def put_many(self, tokens: array[int], first: int, last: int) -> None:
        """As `put` for every end in first..last."""
        first = max(first, self.size)
        if last < first:
            return
        window = np.frombuffer(tokens, np.int32)[first - self.size : last].astype(np.uint64)
        count = last - first + 1
        value = np.zeros(count, np.uint64)
        for i in range(self.size):
            value = value * np.uint64(_FACTOR) + window[i : i + count]
        slots = (value * np.uint64(_SPREAD)) >> np.uint64(self._shift)
        self._places[slots] = np.arange(first, last + 1, dtype=np.int32)

    def get(self, tokens: array[int], end: int) -> int:
        """Return the latest position after the same tokens as before `end`; 0: none."""
        if end < self.size:
            return 0
        place = self._view[self._slot(tokens, end)]
        if place and tokens[place - self.size : place] == tokens[end - self.size : end]:
            return place
        return 0


class Lookup:
    """Guesses for one request. Reads its growing token array; O(1) per token."""

    def __init__(self, tokens: array[int], limit: int) -> None:
        """`limit`: the most tokens the array will ever have."""
        self._tokens = tokens
        self._limit = limit
        self._forget()

    def _forget(self) -> None:
        self._tables = (_Table(LONG, self._limit), _Table(SHORT, self._limit))
        self._n_indexed = 0
        self._n_seen = len(self._tokens)
        self._cursor = 0
        """Position of the token that should come next; 0: following nothing."""
        self._run = 0
        self._lost_at = 0
        """Where the cursor was when the answer went another way; 0: it is not lost."""
        self._left = 0
        """Length of the answer at that moment."""

    def draft(self, most: int) -> tuple[array[int], Source]:
        """Return up to `most` tokens that may come next, none at all included."""
        tokens = self._tokens
        end = len(tokens)
        if end < self._n_seen:  # the middle of the context was forgotten
            self._forget()
        if not self._index(end - 1):
            self._n_seen = end
            return array("i"), Source.SHORT
        for i in range(self._n_seen, end):
            self._see(i)
        self._n_seen = end
        if not self._cursor or self._run < SURE:
            for source, table in zip((Source.LONG, Source.SHORT), self._tables, strict=True):
                place = table.get(tokens, end)
                if place and (source is Source.LONG or not self._cursor):
                    if place != self._cursor:
                        self._cursor, self._run, self._lost_at = place, 0, 0
                    return self._from(place, most), source
        if not self._cursor:
            return array("i"), Source.SHORT
        source = Source.FOLLOWED if self._run >= SURE else Source.RESUMED
        return self._from(self._cursor, most), source

    def _index(self, last: int) -> bool:
        """Take positions up to `last` into the tables; False while a long prompt is not in."""
        first = self._n_indexed + 1
        if last - first < 32:
            for table in self._tables:
                for end in range(first, last + 1):
                    table.put(self._tokens, end)
            self._n_indexed = max(self._n_indexed, last)
            return True
        reach = min(last, first + AT_ONCE - 1)
        for table in self._tables:
            table.put_many(self._tokens, first, reach)
        self._n_indexed = reach
        return reach == last

    def _see(self, i: int) -> None:
        """Move the cursor over token `i` of the answer."""
        tokens = self._tokens
        cursor = self._cursor
        if 0 < cursor < i and tokens[cursor] == tokens[i]:
            self._cursor = cursor + 1
            self._run += 1
            if self._run == 2:
                self._lost_at = 0
            return
        if cursor and self._run >= 2:
            self._lost_at, self._left = cursor, i
        self._cursor = self._run = 0
        if self._lost_at:
            self._find_again(i)

    def _find_again(self, i: int) -> None:
        if i - self._left > NEAR:
            self._lost_at = 0
            return
        tokens, token = self._tokens, self._tokens[i]
        for place in range(self._lost_at, min(self._lost_at + NEAR, self._left)):
            if tokens[place] == token:
                self._cursor = place + 1
                return

    def _from(self, place: int, most: int) -> array[int]:
        """Copy from `place` on; beyond the end it goes on periodically."""
        found = self._tokens[place : place + most]
        while 0 < len(found) < most:
            found.extend(found[: most - len(found)])
        return found
