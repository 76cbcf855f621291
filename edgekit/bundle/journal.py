"""What a long run has finished, one line each: it survives a kill, a half line does not count."""

from __future__ import annotations

import json
import os
from pathlib import Path

from edgekit.errors import from_os


class Journal:
    """A file of `[key, digest, bytes]` lines. A line is written after what it speaks of is safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, tuple[str, int]] = {}
        for line in _lines(path):
            try:
                key, digest, size = json.loads(line)
                self._found[str(key)] = (str(digest), int(size))
            except (ValueError, TypeError):
                continue

    @property
    def exists(self) -> bool:
        return self._path.exists()

    def begin(self) -> None:
        """Create the file. Raises EdgekitError when it cannot be written."""
        self._append(b"")

    def find(self, key: str) -> tuple[str, int]:
        """Return digest and bytes of what was finished under `key`, ("", 0) for nothing."""
        return self._found.get(key, ("", 0))

    def note(self, key: str, digest: str, size: int) -> None:
        """Note a finished blob. Raises EdgekitError when it cannot be written."""
        self._found[key] = (digest, size)
        # The line break before it ends what a killed run may have left half.
        self._append(b"\n" + json.dumps([key, digest, size]).encode())

    def end(self) -> None:
        """Remove the file. Raises EdgekitError."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise from_os(error) from error

    def _append(self, data: bytes) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise from_os(error) from error


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise from_os(error) from error
