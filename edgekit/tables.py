"""Read one TOML table into typed values; a wrong or unknown key is an error that names the file.

Facts are edited by hand, often far from here, so every message says which file, which key and
what was expected.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from edgekit.errors import ConfigError


def load_toml(path: Path) -> Table:
    """Parse one file.

    Raises:
        ConfigError: not readable or not TOML.
    """
    try:
        with path.open("rb") as file:
            return Table(tomllib.load(file), path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not valid TOML: {error}", code="bad_toml", hint="correct the file"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}",
            code="unreadable_config",
            hint="check that the file exists and is readable",
        ) from error


class Table:
    """A TOML table whose keys are taken one by one; `done` refuses what nobody asked for."""

    def __init__(self, values: Mapping[str, object], path: Path, prefix: str = "") -> None:
        self._values = dict(values)
        self._taken: set[str] = set()
        self.path = path
        self._prefix = prefix

    def error(self, key: str, problem: str) -> ConfigError:
        """The error for one key of this table, not yet raised."""
        return ConfigError(
            f"{self.path}: {self._prefix}{key} {problem}",
            code="bad_catalogue",
            hint=f"correct {self._prefix}{key} in {self.path.name}",
        )

    def keys(self) -> tuple[str, ...]:
        return tuple(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _take(self, key: str) -> object:
        self._taken.add(key)
        return self._values.get(key)

    def _missing(self, key: str) -> ConfigError:
        return self.error(key, "is missing")

    def text(self, key: str) -> str:
        value = self.maybe_text(key)
        if value is None:
            raise self._missing(key)
        return value

    def maybe_text(self, key: str) -> str | None:
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, "must be a non-empty string")
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in allowed:
            raise self.error(key, f"is {value!r}; allowed are {', '.join(allowed)}")
        return value

    def integer(self, key: str) -> int:
        value = self.maybe_integer(key)
        if value is None:
            raise self._missing(key)
        return value

    def maybe_integer(self, key: str) -> int | None:
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(key, "must be a whole number, zero or more")
        return value

    def number(self, key: str) -> float:
        value = self.maybe_number(key)
        if value is None:
            raise self._missing(key)
        return value

    def maybe_number(self, key: str) -> float | None:
        value = self._take(key)
        if value is None:
            return None
        # `0 <= nan` is false, so a NaN is refused here as well.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
            raise self.error(key, "must be a finite number, zero or more")
        return float(value)

    def maybe_flag(self, key: str) -> bool | None:
        value = self._take(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.maybe_flag(key)
        return default if value is None else value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; absent is empty."""
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "must be a list of strings")
        return tuple(value)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of positive whole numbers; absent is empty."""
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(i) is int and i > 0 for i in value):
            raise self.error(key, "must be a list of positive whole numbers")
        return tuple(value)

    def table(self, key: str) -> Table:
        value = self.maybe_table(key)
        if value is None:
            raise self._missing(key)
        return value

    def maybe_table(self, key: str) -> Table | None:
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "must be a table")
        return Table(value, self.path, f"{self._prefix}{key}.")

    def tables(self, key: str) -> tuple[Table, ...]:
        """A list of tables; absent is empty."""
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(key, "must be a list of tables")
        return tuple(
            Table(item, self.path, f"{self._prefix}{key}[{i}].") for i, item in enumerate(value)
        )

    def raw(self) -> dict[str, object]:
        """All values as they are, for a table whose keys are not ours (a model's config)."""
        self._taken.update(self._values)
        return dict(self._values)

    def numbers(self) -> dict[str, float]:
        """All values as numbers."""
        return {key: self.number(key) for key in self._values}

    def done(self) -> None:
        """Refuse keys that nobody took.

        Raises:
            ConfigError: there is one; the nearest known key is not guessed.
        """
        unknown = sorted(set(self._values) - self._taken)
        if unknown:
            raise self.error(unknown[0], "is not a known key")
