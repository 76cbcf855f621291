"""A thread for long work that no token waits for: counting the tokens of megabytes.

The intake thread must stay quick, since cancels and new requests come through it. What may take
seconds is offered here instead, and refused when too much is waiting already.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

MOST_JOBS = 16
MOST_BYTES = 64 * 1024 * 1024
"""Of text in waiting jobs together. A first job may have any size."""

Dropped = Callable[[], bool]
"""Whether the job should give up; it asks every few milliseconds."""


class Lane:
    """Does jobs one after another. All methods belong to one other thread."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[int, int, Callable[[Dropped], None]] | None] = SimpleQueue()
        self._sizes: dict[int, int] = {}
        self._dropped: set[int] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def offer(self, key: int, size: int, work: Callable[[Dropped], None]) -> bool:
        """Queue a job; False: too much is waiting. `size`: bytes that it holds.

        `work` must catch what it may raise; anything else ends the thread.
        """
        with self._lock:
            waiting = sum(self._sizes.values())
            if self._sizes and (
                len(self._sizes) >= MOST_JOBS or waiting + size > MOST_BYTES or key in self._sizes
            ):
                return False
            self._sizes[key] = size
        if not self._thread.is_alive():
            self._thread.start()
        self._jobs.put((key, size, work))
        return True

    def drop(self, key: int) -> None:
        """Give a job up, waiting or begun. Unknown keys are those of jobs just done."""
        with self._lock:
            if key in self._sizes:
                self._dropped.add(key)

    def close(self) -> None:
        """Give up everything and wait for the thread."""
        self._closed = True
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            key, _, work = job
            try:
                if not self._given_up(key):
                    work(lambda: self._given_up(key))  # noqa: B023 - done before the next turn
            finally:
                with self._lock:
                    del self._sizes[key]
                    self._dropped.discard(key)

    def _given_up(self, key: int) -> bool:
        return self._closed or key in self._dropped
