"""Sequences that lost their place in KV memory, kept in host RAM, least recently used out first.

Getting a sequence back reads its bytes once, where computing it again runs the whole model over
its tokens: hundreds of times as long. What it costs is the copy on the way out, which holds up
the step thread; so a large copy is not made while other requests run. Behind it there may be a
folder: what falls out goes there, and so does everything when the engine is quiet or stops.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from edgekit_server.engine.adapters import NO_ADAPTERS, AdapterSet
from edgekit_server.engine.checkpoints import WORTH, Kind, keepable
from edgekit_server.engine.diskcache import DiskCache
from edgekit_server.engine.prefix import common_prefix
from edgekit_server.engine.resident import Saved

MOST_PAUSE_S = 0.02
"""The longest that saving an idle sequence may hold up running ones."""
FIRST_RATE = 2e9
"""Bytes per second of a copy, until one was measured."""
MEASURABLE = 1 << 20
"""A copy of fewer bytes says nothing about the rate."""


@dataclass(slots=True, eq=False)
class _Entry:
    saved: Saved
    on_disk: bool


class HostCache:
    """A store with a budget in bytes. Its methods may be called from several threads."""

    def __init__(
        self,
        budget: int,
        disk: DiskCache | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_disk: AdapterSet = NO_ADAPTERS,
    ) -> None:
        """`on_disk`: the adapters that the folder's files were computed with; others stay here."""
        self._on_disk = on_disk
        self.budget = budget
        self._disk = disk
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []
        """Least recently used first."""
        self._asked = 0.0
        self._rate = FIRST_RATE

    @property
    def lasts(self) -> bool:
        """Whether what is here outlives the engine."""
        return self._disk is not None

    @property
    def n_bytes(self) -> int:
        """Bytes held now."""
        with self._lock:
            return sum(entry.saved.n_bytes for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def wants(
        self,
        tokens: array[int],
        n_bytes: int,
        adapters: AdapterSet = NO_ADAPTERS,
        *,
        hurried: bool,
    ) -> bool:
        """Whether to copy a sequence of `n_bytes` here now; `hurried`: requests are running."""
        if n_bytes > self.budget or (hurried and n_bytes > self._rate * MOST_PAUSE_S):
            return False
        with self._lock:
            if any(_covers(entry.saved, tokens, adapters) for entry in self._entries):
                return False
        self._asked = self._clock()
        return True

    def put(self, saved: Saved) -> None:
        """Keep a sequence, just copied after `wants`; shorter ones that it begins with go."""
        took = self._clock() - self._asked
        if saved.blob.nbytes >= MEASURABLE and took > 0:
            self._rate += (saved.blob.nbytes / took - self._rate) / 4
        stays = self._disk is None or saved.adapters != self._on_disk
        self._add(_Entry(saved, on_disk=stays))

    def find(
        self, prompt: array[int], kind: Kind, adapters: AdapterSet = NO_ADAPTERS
    ) -> tuple[Saved | None, int]:
        """Return the sequence that gives a prompt the longest beginning, and its length."""
        with self._lock:
            found, length = longest(self._with(adapters), prompt, kind)
            if found is not None:
                self._entries.sort(key=lambda entry: entry.saved is found)
        return found, length

    def prefetch(self, prompt: array[int], kind: Kind, adapters: AdapterSet = NO_ADAPTERS) -> None:
        """Fetch a prompt's beginning from the disk; for the thread that takes prompts in."""
        if self._disk is None or adapters != self._on_disk:
            return
        with self._lock:
            _, length = longest(self._with(adapters), prompt, kind)
        saved = self._disk.find(prompt, length + WORTH)
        if saved is not None:
            self._add(_Entry(replace(saved, adapters=adapters), on_disk=True))

    def flush(self, timeout_s: float = 0.0) -> bool:
        """Hand what is not on disk yet to its writer; False when it did not take all."""
        with self._lock:
            entries = [entry for entry in self._entries if not entry.on_disk]
        deadline = self._clock() + timeout_s
        for entry in reversed(entries):
            assert self._disk is not None
            if not self._disk.put(entry.saved, max(0.0, deadline - self._clock())):
                return False
            entry.on_disk = True
        return True

    def close(self, timeout_s: float) -> None:
        """Write everything to the folder, if there is one, for `timeout_s` at most."""
        if self._disk is not None:
            deadline = self._clock() + timeout_s
            self.flush(timeout_s)
            self._disk.close(max(0.0, deadline - self._clock()))

    def _with(self, adapters: AdapterSet) -> list[Saved]:
        return [entry.saved for entry in self._entries if entry.saved.adapters == adapters]

    def _add(self, new: _Entry) -> None:
        if new.saved.n_bytes > self.budget:
            return
        out: list[_Entry] = []
        with self._lock:
            kept = [
                e for e in self._entries if not _covers(new.saved, e.saved.tokens, e.saved.adapters)
            ]
            total = new.saved.n_bytes + sum(entry.saved.n_bytes for entry in kept)
            while total > self.budget:
                out.append(kept.pop(0))
                total -= out[-1].saved.n_bytes
            self._entries = [*kept, new]
        for entry in out:
            if self._disk is not None and not entry.on_disk:
                self._disk.put(entry.saved)


def longest(entries: Iterable[Saved], prompt: array[int], kind: Kind) -> tuple[Saved | None, int]:
    """Return the entry whose restored memory can keep most of a prompt, and how much; the last
    token of the prompt is left to compute."""
    found: Saved | None = None
    length = 0
    for entry in entries:
        common = common_prefix(entry.tokens, prompt, len(prompt) - 1)
        if common <= length:
            continue
        n = len(entry.tokens)
        kept, _ = keepable(kind, common, n, max(0, n - kind.n_swa), entry.checkpoints)
        if kept > length:
            found, length = entry, kept
    return found, length


def _covers(entry: Saved, tokens: array[int], adapters: AdapterSet) -> bool:
    """Whether an entry begins with all of these tokens, computed with the same adapters."""
    return entry.adapters == adapters and common_prefix(entry.tokens, tokens) == len(tokens)
