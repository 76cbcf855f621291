"""What each tuned setting was worth, in words and figures. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Final

from edgekit.autotune import Figures, History, Setting, figures

_NAMES: Final[dict[str, Callable[[object], str]]] = {
    "flash_attn": lambda v: "flash attention " + {None: "automatic", True: "on", False: "off"}[v],  # type: ignore[index]
    "streams": lambda v: "KV cells by user" if v else "KV cells shared by all users",
    "extra_bufts": lambda v: "repacked weights " + ("on" if v else "off"),
    "n_ubatch": lambda v: f"ubatch {v}",
    "n_threads": lambda v: f"{v} thread" + ("" if v == 1 else "s"),
}


def name(setting: str, value: object) -> str:
    """Say a value of a setting: "flash attention off"."""
    return _NAMES[setting](value)


def describe(setting: Setting) -> str:
    """Say a whole setting in one line."""
    return ", ".join(name(key, getattr(setting, key)) for key in _NAMES)


def reasons(history: History, chosen: Setting, users: int) -> dict[str, str]:
    """Return for each setting why it is as it is: what the other values did, by measurement."""
    found = {s: f for s in history if (f := figures(history, s, users)) is not None}
    told: dict[str, str] = {}
    for key in _NAMES:
        value = getattr(chosen, key)
        others = {getattr(s, key) for s in found} - {value}
        words = [
            _compared(key, pair, found, users)
            for other in sorted(others, key=str)
            if (pair := _pair(key, value, other, chosen, found)) is not None
        ]
        told[key] = f"{name(key, value)}: " + ("; ".join(words) or "nothing else was measured")
    return told


def _pair(
    key: str, value: object, other: object, chosen: Setting, found: dict[Setting, Figures]
) -> tuple[Setting, Setting] | None:
    """Return two measured settings that differ in one thing only, as near the chosen as may be."""
    pairs = [
        (mine, theirs)
        for mine in found
        if getattr(mine, key) == value and (theirs := replace(mine, **{key: other})) in found  # type: ignore[arg-type]
    ]
    return min(pairs, key=lambda p: _distance(p[0], chosen)) if pairs else None


def _distance(a: Setting, b: Setting) -> int:
    return sum(getattr(a, f.name) != getattr(b, f.name) for f in fields(Setting))


def _compared(
    key: str,
    pair: tuple[Setting, Setting],
    found: dict[Setting, Figures],
    users: int,
) -> str:
    mine, theirs = found[pair[0]], found[pair[1]]
    parts = [f"prefill {theirs.prefill_s / mine.prefill_s:.2f}x"]
    if key != "n_ubatch":
        depth = f"{mine.alone[-1][0]:,} tokens deep"
        parts.append(f"decode {theirs.alone_s / mine.alone_s:.2f}x at {depth}")
        if users > 1:
            parts.append(f"{theirs.together / mine.together:.2f}x with {users} users")
    whole = theirs.request_s / mine.request_s
    parts.append(f"a request {whole:.2f}x as fast")
    return ", ".join(parts) + f" as with {name(key, getattr(pair[1], key))}"
