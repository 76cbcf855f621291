"""Defaults of options from config.toml: one table per command, the user's file over the system's.

[deploy]
users = 2
port = 9000
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ConfigError

if TYPE_CHECKING:
    from typer.core import TyperGroup

SYSTEM_FILE = Path("/etc/edgekit/config.toml")


def read_settings(group: TyperGroup) -> dict[str, dict[str, object]]:
    """Return the parser's default map.

    Raises ConfigError when a file cannot be read, or names a command or option that is not there.
    """
    from edgekit import paths

    known = {name: _options(command.params) for name, command in group.commands.items()}
    found: dict[str, dict[str, object]] = {}
    for file in dict.fromkeys((SYSTEM_FILE, paths.config_dir() / "config.toml")):
        for name, table in read_tables(file).items():
            if name not in known:
                raise _unknown(file, f"[{name}] names no command", name, known)
            if not isinstance(table, dict):
                raise ConfigError(
                    f"{file}: {name} must be a table such as [deploy]",
                    code="bad_config_file",
                    hint="put options under the name of their command",
                )
            for key, value in table.items():
                if name == "models" and isinstance(value, dict):
                    continue  # a model to deploy, see model_table.py
                option = key.replace("-", "_")
                if option not in known[name]:
                    what = f"[{name}] has no option {key!r}"
                    raise _unknown(file, what, option, known[name])
                # The parser would take the letters of a string for several values.
                several = known[name][option] and not isinstance(value, list)
                found.setdefault(name, {})[option] = [value] if several else value
    return found


def _options(params: Iterable[object]) -> dict[str, bool]:
    """Return the options, and whether one takes several values; arguments are no settings."""
    return {
        str(getattr(p, "name", "")): bool(getattr(p, "multiple", False))
        for p in params
        if getattr(p, "param_type_name", "") == "option"
        and getattr(p, "name", "") not in ("help", "json", "dry_run")
    }


def read_tables(file: Path) -> dict[str, object]:
    """Return what a file holds, nothing if it is not there. Raises ConfigError."""
    try:
        return tomllib.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: {error}", code="bad_config_file", hint="mend the file or move it away"
        ) from error


def _unknown(file: Path, what: str, name: str, known: Iterable[str]) -> ConfigError:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}" if near else f"known: {', '.join(names)}"
    return ConfigError(f"{file}: {what}", code="bad_config_file", hint=hint)
