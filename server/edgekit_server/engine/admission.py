"""Who may run: the queue of waiting requests, and the memory they start in or give back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from edgekit_server.engine import scheduler, sharing
from edgekit_server.engine.memory import SeqTable
from edgekit_server.engine.prefix import common_prefix
from edgekit_server.engine.request import Request
from edgekit_server.engine.scheduler import Work


class Admission:
    """Waiting and running requests of one engine. Belongs to the step thread."""

    def __init__(self, table: SeqTable, clock: Callable[[], float]) -> None:
        self.table = table
        self.waiting: deque[Request] = deque()
        self.running: dict[int, Request] = {}
        """By key, in order of admission."""
        self.n_preempted = 0
        self._clock = clock
        self._progress: dict[int, tuple[int, int]] = {}
        """By key: tokens in memory, and steps since that last grew."""

    def admit(self) -> list[Request]:
        """Start waiting requests in order of arrival while ids and cells allow.

        One whose beginning a running request is about to compute is held back until that is
        done; its id and its cells stay reserved, so later ones cannot take its place. Return
        those that have no room for even one token of an answer: the caller ends them.
        """
        self._note_progress()
        full = [r for r in self.waiting if len(r.tokens) >= r.limit]
        for request in full:
            self.waiting.remove(request)
        n_held = claimed = 0
        for request in list(self.waiting):
            if self.table.n_free() <= n_held:
                break
            owner = self._awaited(request)
            shared = self._shared(request) if owner is None else owner.common
            if self.running and not self.fits(request, shared, claimed):
                break
            if owner is not None:
                n_held += 1
                claimed += len(request.tokens) - shared + request.reserve
                continue
            self.waiting.remove(request)
            self._start(request)
        return full

    def _note_progress(self) -> None:
        before = self._progress
        self._progress = {}
        for key, request in self.running.items():
            n, stalled = before.get(key, (-1, 0))
            computed = self.computed(request)
            self._progress[key] = (computed, stalled + 1 if computed == n else 0)

    def _awaited(self, request: Request) -> sharing.Owner | None:
        """The running request that computes this one's beginning, if waiting for it pays."""
        table = self.table
        if not (self.running and request.cache_prompt and table.reuse and table.can_copy):
            return None
        owners: list[sharing.Owner] = []
        for key, running in self.running.items():
            if running.adapters != request.adapters:
                continue
            common = common_prefix(running.tokens, request.tokens, len(request.tokens) - 1)
            if common >= table.copy_min and common > (computed := self.computed(running)):
                stalled = self._progress.get(key, (0, 0))[1]
                owners.append(sharing.Owner(key, common, computed, stalled))
        if not owners:
            return None
        n_cached = table.available(request.tokens, request.adapters)
        owner = sharing.awaited(n_cached, owners, min_gain=table.copy_min)
        if owner is not None:
            seq = self.running[owner.key].seq
            assert seq is not None
            table.stop_at(seq, owner.common)
        return owner

    def _shared(self, request: Request) -> int:
        if not request.cache_prompt:
            return 0
        return self.table.shared_with_running(request.tokens, request.adapters)

    def _start(self, request: Request) -> None:
        request.seq, n_cached = self.table.acquire(
            request.key,
            request.tokens,
            reuse=request.cache_prompt,
            adapters=request.adapters,
        )
        request.admitted = self._clock()
        if not request.announced:
            request.n_cached = n_cached
        self.running[request.key] = request

    def fits(self, request: Request, shared: int, claimed: int) -> bool:
        """Whether a request may start beside the running ones and those held back.

        `shared`: tokens of it that need no cells of their own; `claimed`: cells promised to
        requests held back.
        """
        if not self.table.kind.unified:
            return True
        reserved = sum(self.remaining(r) + r.reserve for r in self.running.values())
        return scheduler.can_admit(
            free_cells=self.table.n_cells - self.table.busy_cells(),
            needed=len(request.tokens) - shared + request.reserve,
            reserved=reserved + claimed,
        )

    def computed(self, request: Request) -> int:
        """Return how many tokens of a running request are in memory."""
        assert request.seq is not None
        return len(self.table.residents[request.seq].tokens)

    def remaining(self, request: Request) -> int:
        """Return how many tokens of a running request are still to be computed."""
        return len(request.tokens) - self.computed(request)

    def release(self, request: Request, *, keep: bool) -> None:
        """Take a request out, wherever it is; `keep`: its tokens may serve later ones."""
        if request.seq is None:
            if request in self.waiting:
                self.waiting.remove(request)
            return
        del self.running[request.key]
        self.table.release(request.seq, keep=keep and request.cache_prompt)
        request.seq = None

    def make_room(self, n_rows: int) -> None:
        """Drop idle residents, oldest first, until a step's rows have cells."""
        table = self.table
        if not table.kind.unified:
            return
        while table.most_used_cells() + n_rows > table.n_cells:
            if table.used_cells() + n_rows <= table.n_cells or not table.drop_oldest_idle():
                return

    def no_room(self) -> Request | None:
        """After a decode found no cells: make some free, or return the request that must fail.

        Idle residents go first, then the youngest running request, which returns to the front
        of the queue; later its memory comes back from the store or is computed again. Only a
        request that has the memory for itself alone and still does not fit fails.
        """
        if self.table.drop_oldest_idle():
            return None
        if len(self.running) == 1:
            (request,) = self.running.values()
            return request
        youngest = max(self.running.values(), key=lambda r: (r.admitted, r.key))
        self._preempt(youngest, keep=youngest.cache_prompt)
        return None

    def _preempt(self, request: Request, *, keep: bool) -> None:
        assert request.seq is not None
        del self.running[request.key]
        self.table.preempt(request.seq, keep=keep)
        request.seq = None
        self.waiting.appendleft(request)
        self.n_preempted += 1

    def paused(self, works: Sequence[Work]) -> list[Work]:
        """Have prompts pause where a checkpoint is to be made."""
        if self.table.kind.exact or not self.table.reuse:
            return list(works)
        return [
            work if work.decoding else replace(work, pause=self.table.pause(work.seq))
            for work in works
        ]

    def shift(self) -> None:
        """Make room in each running request that has filled its context and asked for that."""
        for request in self.running.values():
            if request.shift_at is None or len(request.tokens) < request.shift_at:
                continue
            assert request.seq is not None
            discard = (len(request.tokens) - request.n_keep) // 2
            self.table.shift(request.seq, request.n_keep, discard)
            request.forget(discard)

    def tidy(self) -> bool:
        """Save one idle sequence while nothing runs; False when all are saved."""
        idle = [] if self.running or self.waiting else self.table.idle()
        return any(self.table.save(resident, hurried=False) for resident in idle)

    def clear(self) -> None:
        """Empty every sequence; the running requests return to the queue, in order."""
        for request in sorted(self.running.values(), key=_youngest_first):
            self._preempt(request, keep=False)
        for resident in self.table.residents:
            if resident.tokens:
                self.table.drop(resident)


def _youngest_first(request: Request) -> tuple[float, int]:
    return -request.admitted, -request.key
