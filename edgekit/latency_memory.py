"""Peak resident memory of server processes, watched from a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Self

import psutil

SAMPLE_EVERY_S = 0.2
FAMILY_EVERY_S = 2.0


class MemoryPeak:
    """Watches the resident memory of processes and their children while a block runs.

    `peak_bytes` sums the processes, in bytes, and counts weights that are mapped from the file
    once they are touched. It is None when nothing could be read: no process given, or none
    visible to this user.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-peak", daemon=True)
        self._family: dict[int, psutil.Process] = {}
        self._family_at = float("-inf")
        self.peak_bytes: int | None = None

    def __enter__(self) -> Self:
        if self._pids:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._pids:
            self._thread.join()

    def _watch(self) -> None:
        self._look()
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._look()
        self._look()

    def _look(self) -> None:
        # Finding children reads every process of the machine: too dear for each sample, since
        # it takes time from the client that is being timed.
        if time.monotonic() - self._family_at > FAMILY_EVERY_S:
            self._find_family()
        total = 0
        for process in self._family.values():
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        if total:
            self.peak_bytes = max(self.peak_bytes or 0, total)

    def _find_family(self) -> None:
        self._family_at = time.monotonic()
        self._family = {}
        for pid in self._pids:
            try:
                parent = psutil.Process(pid)
                members = [parent, *parent.children(recursive=True)]
            except psutil.Error:
                continue
            self._family.update((member.pid, member) for member in members)
