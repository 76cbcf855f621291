"""Who may run: the queue of waiting requests, and the memory they start in or give back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from edgekit_server.engine import scheduler
from edgekit_server.engine.memory import SeqTable
from edgekit_server.engine.request import Request


class Admission:
    """Waiting and running requests of one engine. Belongs to the step thread."""

    def __init__(self, table: SeqTable, clock: Callable[[], float]) -> None:
        self.table = table
        self.waiting: deque[Request] = deque()
        self.running: dict[int, Request] = {}
        """By key, in order of admission."""
        self.n_preempted = 0
        self._clock = clock

    def admit(self) -> list[Request]:
        """Start waiting requests in order of arrival while ids and cells allow.

        Return those that have no room for even one token of an answer: the caller ends them.
        """
        full: list[Request] = []
        while self.waiting and self.table.has_room():
            request = self.waiting[0]
            if len(request.tokens) >= request.limit:
                full.append(self.waiting.popleft())
                continue
            if self.running and not self.fits(request):
                break
            self.waiting.popleft()
            self._start(request)
        return full

    def _start(self, request: Request) -> None:
        request.seq, n_cached = self.table.acquire(
            request.key, request.tokens, reuse=request.cache_prompt
        )
        request.admitted = self._clock()
        if not request.announced:
            request.n_cached = n_cached
        self.running[request.key] = request

    def fits(self, request: Request) -> bool:
        """Whether a request may start beside the running ones."""
        shared = self.table.shared_with_running(request.tokens) if request.cache_prompt else 0
        reserved = sum(self.remaining(r) + r.reserve for r in self.running.values())
        return scheduler.can_admit(
            free_cells=self.table.n_cells - self.table.busy_cells(),
            needed=len(request.tokens) - shared + request.reserve,
            reserved=reserved,
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
        while table.most_used_cells() + n_rows > table.n_cells:
            if table.used_cells() + n_rows <= table.n_cells or not table.drop_oldest_idle():
                return

    def no_room(self) -> Request | None:
        """After a decode found no cells: make some free, or return the request that must fail.

        Idle residents go first, then the youngest running request, which returns to the front
        of the queue and computes its tokens again later. Only a request that has the memory
        for itself alone and still does not fit fails.
        """
        if self.table.drop_oldest_idle():
            return None
        if len(self.running) == 1:
            (request,) = self.running.values()
            return request
        self._preempt(max(self.running.values(), key=lambda r: (r.admitted, r.key)))
        return None

    def _preempt(self, request: Request) -> None:
        assert request.seq is not None
        del self.running[request.key]
        self.table.release(request.seq, keep=False)
        request.seq = None
        self.waiting.appendleft(request)
        self.n_preempted += 1

    def clear(self) -> None:
        """Empty every sequence; the running requests return to the queue, in order."""
        for request in sorted(self.running.values(), key=_youngest_first):
            self._preempt(request)
        for resident in self.table.residents:
            if resident.tokens:
                self.table.drop(resident)


def _youngest_first(request: Request) -> tuple[float, int]:
    return -request.admitted, -request.key
