"""The `[models]` table of config.toml: what `edgekit deploy` runs when it is given no model.

[models.mistral-3-small]
pin = true

[models."qwen2.5-coder-1.5b"]
roles = ["completion"]
ctx = 8192
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the table; None leaves the choice to the command's own options."""

    name: str
    filetype: str | None = None
    ctx: int | None = None
    users: int | None = None
    offload: int | None = None
    source: Path | None = None
    roles: tuple[str, ...] = ()
    pin: bool = False


_KINDS: Mapping[str, type] = {
    "filetype": str, "ctx": int, "users": int, "offload": int, "source": str, "roles": list,
    "pin": bool,
}  # fmt: skip


def read_entries() -> list[Entry]:
    """Return the user's table, else the system's, in its order; empty where there is none.

    Raises ConfigError for keys or values that mean nothing.
    """
    from edgekit import paths
    from edgekit.cli.settings import SYSTEM_FILE, read_tables

    for file in (paths.config_dir() / "config.toml", SYSTEM_FILE):
        table = read_tables(file).get("models")
        if isinstance(table, dict):
            found = [
                entry(file, name, given) for name, given in table.items() if isinstance(given, dict)
            ]
            if found:
                return found
    return []


def entry(file: Path, name: str, given: Mapping[str, object]) -> Entry:
    """Read one model. Raises ConfigError."""
    values: dict[str, Any] = {}
    for key, value in given.items():
        kind = _KINDS.get(key)
        where = f"{file}: [models.{name}] {key}"
        if kind is None:
            raise _bad(f"{where} is not known", f"known: {', '.join(_KINDS)}")
        # In Python True is an int.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _bad(f"{where} must be a {_WORDS[kind]}", "mend the file")
        values[key] = value
    if "roles" in values:
        from edgekit.several import checked_roles

        values["roles"] = checked_roles(name, [str(role) for role in values["roles"]])
    if "source" in values:
        values["source"] = Path(values["source"]).expanduser()
    for key, least in (("users", 1), ("ctx", 256), ("offload", 0)):
        if key in values and values[key] < least:
            raise _bad(f"{file}: [models.{name}] {key} must be at least {least}", "mend the file")
    return Entry(name, **values)


_WORDS = {str: "text", int: "whole number", list: "list", bool: "true or false"}


def _bad(message: str, hint: str) -> ConfigError:
    return ConfigError(message, code="bad_config_file", hint=hint)
