"""Find any of several strings in text that comes in pieces, holding back only what may match.

An Aho-Corasick automaton: the depth of its state is the length of the longest end of the text
that could still become a match, which is exactly what must not be shown yet.
(A. V. Aho, M. J. Corasick, CACM 18(6), 1975.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scan:
    """What one piece of text released: text that is safe, then perhaps a match."""

    text: str
    match: str | None = None
    rest: str = ""
    """What follows the match; not scanned yet."""


class _Automaton:
    """The tables, one row a state: where each character leads, and where to go on if none does."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.fail = [0]
        self.depth = [0]
        self.match: list[str | None] = [None]
        for pattern in patterns:
            self._add(pattern)
        self._link()

    def _add(self, pattern: str) -> None:
        state = 0
        for char in pattern:
            if char not in self.next[state]:
                self.next.append({})
                self.fail.append(0)
                self.depth.append(self.depth[state] + 1)
                self.match.append(None)
                self.next[state][char] = len(self.next) - 1
            state = self.next[state][char]
        self.match[state] = pattern

    def _link(self) -> None:
        queue = deque(self.next[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self.next[state].items():
                queue.append(child)
                back = self.fail[state]
                while back and char not in self.next[back]:
                    back = self.fail[back]
                self.fail[child] = self.next[back].get(char, 0)
                # The longest match ending here wins: it starts first.
                if self.match[child] is None:
                    self.match[child] = self.match[self.fail[child]]


class Scanner:
    """Amortised O(1) per character; the state survives between calls of `feed`."""

    def __init__(self, patterns: Sequence[str], automaton: _Automaton | None = None) -> None:
        """`automaton`: that of another scanner for the same patterns, to save the building."""
        self._patterns = tuple(dict.fromkeys(p for p in patterns if p))
        self._automaton = automaton or _Automaton(self._patterns)
        self._state = 0
        self._held = ""

    def fresh(self) -> Scanner:
        """Return a scanner for the same patterns that has seen nothing."""
        return Scanner(self._patterns, self._automaton)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def feed(self, text: str) -> Scan:
        """Take more text; return what is safe, up to the first match (the one that ends first)."""
        if not self._patterns:
            return Scan(text)
        automaton = self._automaton
        state, step, fail, found = self._state, automaton.next, automaton.fail, automaton.match
        for at, char in enumerate(text):
            while state and char not in step[state]:
                state = fail[state]
            state = step[state].get(char, 0)
            match = found[state]
            if match is not None:
                whole = self._held + text[: at + 1]
                self._state, self._held = 0, ""
                return Scan(whole[: -len(match)], match, text[at + 1 :])
        self._state = state
        whole = self._held + text
        safe = len(whole) - automaton.depth[state]
        self._held = whole[safe:]
        return Scan(whole[:safe])

    def flush(self) -> str:
        """End of text: return what was held back, and start anew."""
        held, self._held, self._state = self._held, "", 0
        return held
