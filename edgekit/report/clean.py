"""Foreign text made harmless to look at."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace what could steer a terminal or reorder a line, one mark for each character.

    A model's name comes from a file or a server: control characters, escape sequences and
    bidirectional marks in it must not reach the reader's screen.
    """
    return "".join(
        char if char.isprintable() or char == "\N{NO-BREAK SPACE}" else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )
