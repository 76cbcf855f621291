"""The files of one kind in the catalogue's folders, each read when it is asked for.

Who asks for one model must not pay for parsing all. A built-in file's names are seen without
parsing it (they are written plainly, the tests see to it); files of other folders are read at
once, so that a mistake in one is told whatever was asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from edgekit.errors import ConfigError

_ID: Final = re.compile(r'^id = "([a-z0-9.\-]+)"', re.MULTILINE)
_ALIASES: Final = re.compile(r"^aliases = \[([^\]]*)\]", re.MULTILINE)
_QUOTED: Final = re.compile(r'"([^"]*)"')


class Named(Protocol):
    """What every entry has."""

    @property
    def id(self) -> str: ...

    @property
    def aliases(self) -> tuple[str, ...]: ...


T = TypeVar("T", bound=Named)


class Shelf(Generic[T]):
    """Entries by id; one in a later folder replaces one of the same id."""

    def __init__(
        self, kind: str, folders: Sequence[Path], read: Callable[[Path], T], builtin: Path
    ) -> None:
        """Look through `folders`; those inside `builtin` are read later.

        Raises:
            ConfigError: a file is wrong, or two entries claim one name.
        """
        self._read = read
        self._entries: dict[str, T | Path] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        for folder in folders:
            for path in sorted(folder.glob("*.toml")):
                names = plain_names(path) if folder.parent == builtin else None
                entry: T | Path = path
                if names is None:
                    entry = read(path)
                    names = (entry.id, *entry.aliases)
                self._entries[names[0]] = entry
                self._names[names[0]] = names
        _refuse_clashes(kind, self._names)

    def find(self, name: str) -> T | None:
        """The entry with this id or alias, in small letters."""
        found = next((own for own, names in self._names.items() if name in names), None)
        return None if found is None else self._get(found)

    def all(self) -> Iterator[T]:
        """Every entry, by id."""
        for own in sorted(self._entries):
            yield self._get(own)

    def names(self) -> list[tuple[str, ...]]:
        """The id and aliases of every entry."""
        return [self._names[own] for own in sorted(self._names)]

    def _get(self, own: str) -> T:
        entry = self._entries[own]
        if isinstance(entry, Path):
            entry = self._entries[own] = self._read(entry)
        return entry


def plain_names(path: Path) -> tuple[str, ...] | None:
    """Id and aliases of a file as text, None where they are not written plainly."""
    try:
        head = path.read_text(encoding="utf-8").split("\n[", 1)[0]
    except (OSError, UnicodeDecodeError):
        return None
    own, aliases = _ID.search(head), _ALIASES.search(head)
    if own is None or (aliases is None and "aliases" in head):
        return None
    return (own.group(1), *(_QUOTED.findall(aliases.group(1)) if aliases else ()))


def _refuse_clashes(kind: str, entries: dict[str, tuple[str, ...]]) -> None:
    owners: dict[str, str] = {}
    for entry, names in entries.items():
        for name in names:
            owner = owners.setdefault(name, entry)
            if owner != entry:
                raise ConfigError(
                    f"the {kind} name {name!r} is claimed by {owner} and by {entry}",
                    code="ambiguous_name",
                    hint="remove it from the aliases of one of them",
                )
