"""When an engine child that lives but gets nothing done is given up. Pure but for `end`.

Two figures of the child's pulse must move while someone waits for them: its work (finished steps
and graph nodes) while accepted requests are open, and the messages its intake has dealt with
while one has had no reply. A stopped child, a lost GPU, a lock never released, a loop that never
ends: all look alike from here.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable

CHECKS = 8
"""Looks per limit."""
ABORT_PATIENCE_S = 2.0


class _Figure:
    """A number that should move, and since when it has not."""

    def __init__(self, now: float) -> None:
        self.value = 0
        self.since = now

    def see(self, value: int, now: float) -> None:
        if value != self.value:
            self.value, self.since = value, now


class Watchdog:
    """Judges one child by its pulses."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit_s`: the longest time without any progress, in seconds."""
        self.limit_s = limit_s
        self.interval_s = limit_s / CHECKS
        self._clock = clock
        now = clock()
        self._work, self._intake = _Figure(now), _Figure(now)
        self._looked = now

    def pulse(self, worked: int, taken: int) -> None:
        """The child reported these figures."""
        now = self._clock()
        self._work.see(worked, now)
        self._intake.see(taken, now)

    def output(self) -> None:
        """The child sent the outputs of a step."""
        self._work.since = self._clock()

    def stalled(self, *, running: bool, unanswered: bool) -> str | None:
        """Return what stands still for too long, or None. To be called every `interval_s`.

        `running`: accepted requests are open; `unanswered`: some request has had no reply.
        """
        now = self._clock()
        # A front that slept itself (a suspended machine, a paused container) knows nothing.
        slept = now - self._looked > self.limit_s / 2
        self._looked = now
        if slept or not running:
            self._work.since = now
        if slept or not unanswered:
            self._intake.since = now
        if now - self._work.since >= self.limit_s:
            return f"it computed nothing for {self.limit_s:g} s with requests open"
        if now - self._intake.since >= self.limit_s:
            return f"it took no request for {self.limit_s:g} s"
        return None


def end(process: subprocess.Popen[bytes]) -> None:
    """End a child that does not react: SIGABRT, so that it says where it is, then SIGKILL."""
    with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
        process.send_signal(signal.SIGABRT)
        process.wait(ABORT_PATIENCE_S)
        return
    process.kill()
