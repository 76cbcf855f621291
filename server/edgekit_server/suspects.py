"""Which requests were in flight when an engine died, by content, and which of them is refused.

Whatever ran at both of two deaths is a suspect. If that is one request, it is guilty. If clients
repeat all they had open, several are; then they run one at a time, so that a third death, or an
answer, tells them apart.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from hashlib import blake2b

from .engine import wire

MAX_DEATHS = 2
MEMORY_S = 3600.0
MAX_REMEMBERED = 1024


def content_key(request: wire.Generate) -> bytes:
    """Return a digest of what the engine computes for a request.

    Its id, seed, deadline and way of delivery are left out: choices of one request and retries
    are the same work.
    """
    sampling = replace(request.sampling, seed=None)
    plain = replace(request, id=0, sampling=sampling, deadline_s=None, whole=False)
    return blake2b(wire.encode(plain), digest_size=16).digest()


class Suspects:
    """Counts deaths per content. A request that completes is cleared: it was a bystander."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._deaths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._guilty: set[bytes] = set()
        self._clock = clock

    def blame(self, keys: Iterable[bytes]) -> None:
        """The engine died with these in flight."""
        now, present = self._clock(), set(keys)
        known = {key for key in present if self.deaths(key) >= MAX_DEATHS}
        for key in present:
            self._deaths[key] = (self.deaths(key) + 1, now)
            self._deaths.move_to_end(key)
        repeated = known or {key for key in present if self.deaths(key) >= MAX_DEATHS}
        if len(repeated) == 1:
            self._guilty |= repeated
        while len(self._deaths) > MAX_REMEMBERED:
            self._guilty.discard(self._deaths.popitem(last=False)[0])

    def clear(self, key: bytes) -> None:
        """This request completed."""
        self._deaths.pop(key, None)
        self._guilty.discard(key)

    def deaths(self, key: bytes) -> int:
        """Return how often the engine died under this request within the last hour."""
        count, last = self._deaths.get(key, (0, 0.0))
        return count if self._clock() - last <= MEMORY_S else 0

    def refused(self, key: bytes) -> bool:
        """Whether the request killed the engine too often to be tried again."""
        return key in self._guilty and self.deaths(key) >= MAX_DEATHS

    def must_wait(self, keys: Collection[bytes], running: Collection[bytes]) -> bool:
        """Whether a request is a suspect, and another suspect runs: one at a time."""
        if not any(self._doubtful(key) for key in keys):
            return False
        return any(self._doubtful(key) for key in running if key not in keys)

    def _doubtful(self, key: bytes) -> bool:
        return self.deaths(key) >= MAX_DEATHS and key not in self._guilty
