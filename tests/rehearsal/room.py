"""How much room a folder takes while something runs in it, and how much a process wrote."""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Peak:
    """Looks at a folder again and again; `bytes` is the most that was seen."""

    def __init__(self, folder: Path, every_s: float = 0.2) -> None:
        self.bytes = 0
        self._folder, self._every_s = folder, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, taken(self._folder))

    def _look(self) -> None:
        while not self._done.wait(self._every_s):
            self.bytes = max(self.bytes, taken(self._folder))


def taken(folder: Path) -> int:
    """Return the blocks that a folder takes; a file with two names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(path, name))
            except OSError:
                continue
            seen[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(seen.values())


def written() -> int:
    """Return the bytes that this process and its ended children gave to files and pipes.

    The kernel adds a child's figures to its parent's when the parent waits for it.
    """
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])
