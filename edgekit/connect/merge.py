"""Carry a person's changes over to an older text: a three-way merge by lines."""

from __future__ import annotations

import difflib

_Change = tuple[int, int, list[str]]


def merge(base: str, ours: str, theirs: str) -> str | None:
    """Return `ours` with the changes from `base` to `theirs`; None if both touch the same lines."""
    lines = base.splitlines(keepends=True)
    mine = _changes(lines, ours.splitlines(keepends=True))
    other = _changes(lines, theirs.splitlines(keepends=True))
    if any(_touch(a, b) for a in mine for b in other):
        return None
    merged = list(lines)
    for start, end, new in sorted(mine + other, key=lambda change: change[:2], reverse=True):
        merged[start:end] = new
    return "".join(merged)


def _changes(old: list[str], new: list[str]) -> list[_Change]:
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return [
        (start, end, new[from_:to])
        for tag, start, end, from_, to in matcher.get_opcodes()
        if tag != "equal"
    ]


def _touch(a: _Change, b: _Change) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]
