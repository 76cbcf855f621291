"""What a figure's explanation is made of."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.units import GIB, UNKNOWN


@dataclass(frozen=True, slots=True)
class Input:
    """A number that went in, and where it comes from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: `formula` in words, `filled` the same with numbers, one line each."""

    id: str
    name: str
    value: str
    formula: str
    filled: tuple[str, ...]
    inputs: tuple[Input, ...]
    basis: str


def gib(n_bytes: int | None) -> str:
    """ "20.35 GiB": two places, so that a sum can be followed."""
    return UNKNOWN if n_bytes is None else f"{n_bytes / GIB:,.2f} GiB"


def plain(n: int) -> str:
    """A count with separators."""
    return f"{n:,}"


def amount(n_bytes: int) -> str:
    """Exact bytes."""
    return f"{n_bytes:,} B"


def total(parts: list[tuple[str, int]]) -> str:
    """ "a 1 B + b 2 B = 3 B (0.00 GiB)"; nothing of a sum is left out."""
    whole = sum(size for _, size in parts)
    text = " + ".join(f"{name} {amount(size)}" for name, size in parts)
    equals = f" = {amount(whole)}" if len(parts) > 1 else ""
    return f"{text}{equals} ({gib(whole)})"
