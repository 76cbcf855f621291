"""What tuning found, as a record that is kept by machine and model, and read again.

    cache/autotune/<digest>.json      digest of everything that the figures depend on

A record that is damaged or of another edgekit is as good as none: the trials are run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgekit import autotune_words
from edgekit.autotune import OBJECTIVE, Figures, Setting
from edgekit.errors import EdgekitError
from edgekit.store import write_durably

SCHEMA = "edgekit.autotune/1"


@dataclass(frozen=True, slots=True)
class Row:
    """One setting that was measured; `users` at once in `Figures.together`."""

    setting: Setting
    figures: Figures


@dataclass(frozen=True, slots=True)
class Tuned:
    """The setting to run with and why. `rows`: all that was measured, the default first.

    `facts` is what the figures depend on: machine, library, model, context, users.
    """

    setting: Setting
    users: int
    rows: tuple[Row, ...]
    reasons: Mapping[str, str]
    left_out: tuple[str, ...]
    seconds: float
    facts: Mapping[str, object]
    note: str | None = None
    cached: bool = False

    @property
    def chosen(self) -> Figures:
        return next(r.figures for r in self.rows if r.setting == self.setting)

    @property
    def default(self) -> Row:
        return self.rows[0]

    @property
    def gain(self) -> float:
        """Times as fast as the default; 1.0: the default itself was taken."""
        return self.default.figures.request_s / self.chosen.request_s

    @property
    def summary(self) -> str:
        """One line for a person."""
        changed = [
            autotune_words.name(f.name, getattr(self.setting, f.name))
            for f in fields(Setting)
            if getattr(self.setting, f.name) != getattr(self.default.setting, f.name)
        ]
        how = "kept" if self.cached else f"{len(self.rows)} settings measured"
        if not changed:
            return f"the engine's defaults are the fastest here ({how})"
        return f"{', '.join(changed)}: {self.gain:.2f}x as fast as the defaults ({how})"


def digest(facts: Mapping[str, object]) -> str:
    """Name a record by what it depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def find(folder: Path, facts: Mapping[str, object]) -> Tuned | None:
    """Return the record for these facts, if one is kept and can be read."""
    try:
        record = json.loads((folder / f"{digest(facts)}.json").read_bytes())
        found = from_json(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, StopIteration):
        return None
    return replace(found, cached=True) if found.facts == facts else None


def keep(folder: Path, tuned: Tuned) -> None:
    """Keep a record; a cache that cannot be written costs the trials again and nothing else."""
    with contextlib.suppress(OSError, EdgekitError):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(to_json(tuned), indent=2) + "\n"
        write_durably(folder / f"{digest(tuned.facts)}.json", text.encode())


def to_json(tuned: Tuned) -> dict[str, object]:
    """Return the JSON object. Speeds are tokens per second, `users` together in `all_tok_s`."""
    return {
        "schema": SCHEMA,
        "objective": OBJECTIVE,
        "setting": asdict(tuned.setting),
        "gain": round(tuned.gain, 4),
        "summary": tuned.summary,
        "reasons": dict(tuned.reasons),
        "left_out": list(tuned.left_out),
        "users": tuned.users,
        "cached": tuned.cached,
        "seconds": round(tuned.seconds, 2),
        "note": tuned.note,
        "rows": [_row(row, tuned.users) for row in tuned.rows],
        "facts": dict(tuned.facts),
    }


def from_json(record: Mapping[str, object]) -> Tuned:
    """Rebuild a record. Raises ValueError, KeyError or TypeError for anything else."""
    if record["schema"] != SCHEMA:
        raise ValueError(record["schema"])
    rows = [_fields(row) for row in list(record["rows"])]  # type: ignore[call-overload]
    found = Tuned(
        setting=_setting(record["setting"]),
        users=_whole(record["users"]),
        rows=tuple(Row(_setting(r["setting"]), _figures(r["figures"])) for r in rows),
        reasons={str(k): str(v) for k, v in dict(record["reasons"]).items()},  # type: ignore[call-overload]
        left_out=tuple(map(str, list(record["left_out"]))),  # type: ignore[call-overload]
        seconds=float(record["seconds"]),  # type: ignore[arg-type]
        facts=dict(record["facts"]),  # type: ignore[call-overload]
        note=None if record["note"] is None else str(record["note"]),
    )
    if all(row.setting != found.setting for row in found.rows):
        raise ValueError("the chosen setting is not among the rows")
    return found


def _row(row: Row, users: int) -> dict[str, object]:
    f = row.figures
    return {
        "setting": asdict(row.setting),
        "prefill_tok_s": round(1 / f.prefill_s, 1),
        "decode_tok_s": round(1 / f.alone_s, 1),
        "all_tok_s": round(users / f.together, 1),
        "figures": asdict(f),
    }


def _setting(record: object) -> Setting:
    setting = Setting(**_fields(record))
    for field in ("n_threads", "n_ubatch"):
        _whole(getattr(setting, field))
    flags = (setting.streams, setting.extra_bufts, setting.flash_attn or False)
    if not all(type(flag) is bool for flag in flags):
        raise TypeError(record)
    return setting


def _figures(record: object) -> Figures:
    values = _fields(record)
    alone = tuple((_whole(d), _seconds(s)) for d, s in values.pop("alone"))
    found = Figures(alone=alone, **values)
    for value in (found.prefill_s, found.together, found.request_s):
        _seconds(value)
    return found


def _fields(record: object) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise TypeError(record)
    return dict(record)


def _whole(value: object) -> int:
    if type(value) is not int or value < 1:
        raise TypeError(value)
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, float | int) or not value > 0:
        raise TypeError(value)
    return float(value)
