"""Saved sequences in a folder, so that they outlive the engine. Written off the step thread.

One file per sequence (kvfile.py). A file is only ever seen whole (written aside, then renamed)
and goes when it is broken or when the folder is over its budget, least recently used first.
Its name begins with a digest of everything that the state depends on, so engines with other
models or settings can use the same folder and never read each other's files.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit_server.engine import kvfile
from edgekit_server.engine.kvfile import BrokenError
from edgekit_server.engine.prefix import common_prefix
from edgekit_server.engine.resident import Saved

SUFFIX = ".kv"
PART = ".part"
STALE_S = 3600.0
"""A part this old was left by an engine that was killed."""
BUDGET = 8 * 2**30
"""Bytes of all such files in the folder."""
MOST_QUEUED = 4
"""Sequences that wait to be written; each holds its bytes in RAM."""


@dataclass(slots=True)
class Stored:
    """A file of ours, by what its head says."""

    path: Path
    tokens: array[int]


class DiskCache:
    """The folder. `put` and `find` may be called from any thread; one thread writes."""

    def __init__(
        self, folder: Path, key: str, log: Callable[[str], None], *, budget: int = BUDGET
    ) -> None:
        """Index the files of this key. A folder that cannot be used is reported, not raised."""
        self.folder = folder
        self.key = key
        self.budget = budget
        self._log = log
        self._lock = threading.Lock()
        self._stored: list[Stored] = []
        self._queue: queue.Queue[Saved | None] = queue.Queue(MOST_QUEUED)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._scan()
        except OSError as error:
            log(f"disk cache {folder}: {error}")
        self._thread = threading.Thread(target=self._run, name="disk-cache", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, saved: Saved, timeout_s: float = 0.0) -> bool:
        """Write a sequence soon. False: the disk does not keep up, and it was not taken."""
        try:
            self._queue.put(saved, block=timeout_s > 0, timeout=timeout_s)
        except queue.Full:
            return False
        return True

    def close(self, timeout_s: float) -> None:
        """Write what is queued, for `timeout_s` at most."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def find(self, prompt: array[int], above: int) -> Saved | None:
        """Read the sequence that begins with most of a prompt, if with more than `above`."""
        with self._lock:
            stored = list(self._stored)
        found: Stored | None = None
        for each in stored:
            common = common_prefix(each.tokens, prompt, len(prompt) - 1)
            if common > above:
                found, above = each, common
        if found is None:
            return None
        try:
            saved = kvfile.read(found.path, self.key)
            os.utime(found.path)
        except FileNotFoundError:
            self._forget(found.path)
            return None
        except (OSError, BrokenError) as error:
            self._refuse(found.path, error)
            return None
        return saved

    def _scan(self) -> None:
        for part in self.folder.glob(f"*{PART}"):
            if part.stat().st_mtime < time.time() - STALE_S:
                part.unlink(missing_ok=True)
        for path in sorted(self.folder.glob(f"{self.key}-*{SUFFIX}")):
            try:
                self._stored.append(Stored(path, kvfile.read_tokens(path, self.key)))
            except (OSError, BrokenError) as error:
                self._refuse(path, error)

    def _run(self) -> None:
        while (saved := self._queue.get()) is not None:
            try:
                self._write(saved)
            except OSError as error:
                self._log(f"disk cache {self.folder}: {error}")

    def _write(self, saved: Saved) -> None:
        path = self.folder / f"{self.key}-{kvfile.digest(saved)}{SUFFIX}"
        if path.exists() or saved.n_bytes > self.budget:
            return
        aside = path.with_suffix(f".{os.getpid()}{PART}")
        try:
            kvfile.write(aside, self.key, saved)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        with self._lock:
            covered = [
                s for s in self._stored if common_prefix(s.tokens, saved.tokens) == len(s.tokens)
            ]
            self._stored.append(Stored(path, saved.tokens))
        for stored in covered:
            self._remove(stored.path)
        self._shrink()

    def _shrink(self) -> None:
        """Remove files of any key, least recently used first, down to the budget."""
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.budget:
                return
            self._remove(path)
            total -= size

    def _refuse(self, path: Path, error: Exception) -> None:
        self._log(f"disk cache: {path.name} removed: {error}")
        self._remove(path)

    def _remove(self, path: Path) -> None:
        self._forget(path)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def _forget(self, path: Path) -> None:
        with self._lock:
            self._stored = [s for s in self._stored if s.path != path]
