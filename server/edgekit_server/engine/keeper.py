"""What is done with memory while nobody asks for anything: saved to RAM, later to disk."""

from __future__ import annotations

from collections.abc import Callable

from edgekit_server.engine.admission import Admission
from edgekit_server.engine.hostcache import HostCache

QUIET_WAITS = 20
"""Idle waits in a row after which memory goes to disk: a conversation between two turns would
be written whole at each of them."""
CLOSE_S = 4.0
"""The longest that a stopping engine goes on writing; the front ends it soon after."""


class Keeper:
    """Saves the idle sequences of one engine. Belongs to the step thread."""

    def __init__(
        self, admission: Admission, store: HostCache | None, is_called: Callable[[], bool]
    ) -> None:
        """`is_called`: whether somebody wants something now."""
        self._admission = admission
        self._store = store
        self._is_called = is_called
        self._n_waits = 0

    def rest(self, *, called: bool) -> None:
        """After a wait for something to do: save what is idle if the wait was for nothing."""
        self._n_waits = 0 if called else self._n_waits + 1
        if self._store is None or called:
            return
        while not self._is_called() and self._admission.tidy():
            pass
        if self._n_waits >= QUIET_WAITS:
            self._store.flush()

    def close(self) -> None:
        """Save everything where it outlives the engine."""
        if self._store is None or not self._store.lasts:
            return
        while self._admission.tidy():
            pass
        self._store.close(CLOSE_S)
