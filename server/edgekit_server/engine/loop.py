"""The step loop: admit, plan, decode, sample, tell the front. One thread owns the context."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from edgekit_server.engine import native, sampling, scheduler
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.memory import SeqTable
from edgekit_server.engine.request import Request
from edgekit_server.engine.scheduler import Chunk, Work
from edgekit_server.engine.vocabulary import Vocabulary
from edgekit_server.engine.wire import Output, Step
from edgekit_server.errors import EngineDiedError

MAX_FAILED_STEPS = 3
"""Failures in a row after which the backend itself is taken for broken (a lost GPU)."""
IDLE_WAIT_S = 0.5


class Loop:
    """Runs every accepted request of one engine. `step` belongs to one thread; the methods
    `submit`, `cancel`, `stop` and `has_room` may be called from one other."""

    def __init__(
        self,
        context: native.Context,
        vocabulary: Vocabulary,
        emit: Callable[[Step], None],
        *,
        reuse: bool,
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reuse`: whether this model's memory can be cut anywhere, so prefixes may stay."""
        self._context = context
        self._vocabulary = vocabulary
        self._emit = emit
        self._clock = clock
        self._batch = Batch(context.n_batch)
        self.table = SeqTable(context.n_seq_max, context.n_ctx, context, reuse=reuse)
        self._capacity = context.n_seq_max + max_queue
        self._inbox: deque[Request | int] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._failed_steps = 0
        self.n_steps = self.n_preempted = 0
        self.decode_s = 0.0
        """Time inside llama_decode, for measuring what the rest costs."""

    # -- from the intake thread ---------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether one more request may come in: running plus waiting below the bound."""
        return len(self._running) + len(self._waiting) + len(self._inbox) < self._capacity

    def submit(self, request: Request) -> None:
        self._inbox.append(request)
        self._wake.set()

    def cancel(self, request_id: int) -> None:
        """End a request before the next step; unknown ids are those that have just ended."""
        self._inbox.append(request_id)
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    # -- the step thread ----------------------------------------------------------------------

    def run(self) -> None:
        """Step until stopped; sleep while there is nothing to do."""
        while not self._stopping:
            if not self.step():
                self._wake.wait(IDLE_WAIT_S)
            self._wake.clear()

    def step(self) -> bool:
        """Do one turn; return False when there was nothing to do.

        Raises EngineDiedError when several steps in a row have failed.
        """
        outputs = self._take_inbox()
        outputs += self._admit()
        if self._running:
            outputs += self._compute()
        if outputs:
            self._emit(Step(outputs))
        return bool(self._running or self._waiting or self._inbox)

    def _take_inbox(self) -> list[Output]:
        outputs: list[Output] = []
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Request):
                self._waiting.append(item)
                continue
            for request in [*self._waiting, *self._running.values()]:
                if request.id == item:
                    outputs.append(self._finish(request, "cancelled"))
        return outputs

    def _admit(self) -> list[Output]:
        """Start waiting requests in order of arrival while ids and cells allow."""
        outputs: list[Output] = []
        while self._waiting and self.table.has_room():
            request = self._waiting[0]
            if len(request.tokens) >= request.limit:
                outputs.append(self._finish(request, "length"))
                continue
            if self._running and not self._fits(request):
                break
            self._waiting.popleft()
            request.seq, n_cached = self.table.acquire(
                request.key, request.tokens, reuse=request.cache_prompt
            )
            request.admitted = self._clock()
            if not request.announced:
                request.n_cached = n_cached
            self._running[request.key] = request
        return outputs

    def _fits(self, request: Request) -> bool:
        shared = self.table.shared_with_running(request.tokens) if request.cache_prompt else 0
        reserved = sum(self._remaining(r) + r.reserve for r in self._running.values())
        return scheduler.can_admit(
            free_cells=self.table.n_cells - self.table.busy_cells(),
            needed=len(request.tokens) - shared + request.reserve,
            reserved=reserved,
        )

    def _remaining(self, request: Request) -> int:
        return len(request.tokens) - self._computed(request)

    def _computed(self, request: Request) -> int:
        assert request.seq is not None
        return len(self.table.residents[request.seq].tokens)

    def _compute(self) -> list[Output]:
        """Plan and decode until something fits; return what came out."""
        outputs: list[Output] = []
        while self._running:
            chunks = scheduler.plan(
                self._works(), n_batch=self._context.n_batch, n_ubatch=self._context.n_ubatch
            )
            self._make_room(sum(chunk.count for chunk in chunks))
            rows = self._fill(chunks)
            began = time.perf_counter()
            code = self._context.decode(self._batch.ready())
            self.decode_s += time.perf_counter() - began
            if code == 0:
                outputs += self._advance(chunks, rows)
                self.n_steps += 1
                self._failed_steps = 0
                return outputs
            outputs += self._no_room() if code == 1 else self._failed(chunks, code)
        return outputs

    def _works(self) -> list[Work]:
        now = self._clock()
        works: list[Work] = []
        for request in self._running.values():
            remaining = self._remaining(request)
            decoding = remaining == 1 and request.n_answer > 0
            assert request.seq is not None
            works.append(Work(request.key, request.seq, remaining, decoding, now - request.arrived))
        return works

    def _make_room(self, n_rows: int) -> None:
        """Drop idle residents, oldest first, until the step's rows have cells."""
        table = self.table
        while table.most_used_cells() + n_rows > table.n_cells:
            if table.used_cells() + n_rows <= table.n_cells or not table.drop_oldest_idle():
                return

    def _fill(self, chunks: Sequence[Chunk]) -> list[int]:
        """Write the batch; return the batch row of each chunk that asks for output."""
        self._batch.clear()
        rows: list[int] = []
        for chunk in chunks:
            request = self._running[chunk.key]
            start = self._computed(request)
            part = request.tokens[start : start + chunk.count]
            row = self._batch.add(chunk.seq, start, part, output=chunk.output)
            if chunk.output:
                rows.append(row)
        return rows

    def _advance(self, chunks: Sequence[Chunk], rows: Sequence[int]) -> list[Output]:
        """Record what was computed and draw a token for each finished chunk."""
        drawing: list[Request] = []
        for chunk in chunks:
            request = self._running[chunk.key]
            start = self._computed(request)
            self.table.append(chunk.seq, request.tokens[start : start + chunk.count])
            if chunk.output:
                drawing.append(request)
        if not drawing:
            return []
        pairs = [(request.chooser, row) for request, row in zip(drawing, rows, strict=True)]
        choices = sampling.choose(self._context, pairs, self._vocabulary.pieces)
        return [self._take(r, choice) for r, choice in zip(drawing, choices, strict=True)]

    def _take(self, request: Request, choice: sampling.Choice) -> Output:
        """Apply one drawn token; decide at once whether it is the last."""
        token = choice.token
        if token is None:
            return self._finish(request, "error", "the model computed no finite number")
        if token in request.ends:
            return self._finish(request, "stop")
        request.tokens.append(token)
        full = len(request.tokens) >= request.limit
        piece = (self._vocabulary.pieces[token], token in self._vocabulary.controls)
        logprobs = [] if choice.logprob is None else [choice.logprob]
        n_cached, prefill_ms = self._first_figures(request)
        output = Output(
            id=request.id,
            tokens=[token],
            pieces=[piece],
            logprobs=logprobs,
            top_logprobs=[choice.top] if logprobs else [],
            finish="length" if full else None,
            n_cached=n_cached,
            prefill_ms=prefill_ms,
        )
        if full:
            self._release(request, keep=True)
        return output

    def _first_figures(self, request: Request) -> tuple[int | None, float | None]:
        if request.announced:
            return None, None
        request.announced = True
        return request.n_cached, (self._clock() - request.admitted) * 1000.0

    def _finish(self, request: Request, reason: str, error: str | None = None) -> Output:
        """End a request with no token. Its figures go out here if nothing went out before."""
        n_cached: int | None = None
        prefill_ms: float | None = None
        if request.seq is not None and reason == "stop":
            n_cached, prefill_ms = self._first_figures(request)
        elif not request.announced:
            n_cached = request.n_cached
        self._release(request, keep=reason != "error")
        return Output(
            request.id, [], [], finish=reason, error=error, n_cached=n_cached, prefill_ms=prefill_ms
        )

    def _release(self, request: Request, *, keep: bool) -> None:
        request.chooser.close()
        if request.seq is None:
            self._waiting.remove(request)
            return
        del self._running[request.key]
        self.table.release(request.seq, keep=keep and request.cache_prompt)
        request.seq = None

    def _no_room(self) -> list[Output]:
        """Make cells free: idle residents first, then the youngest running request.

        The preempted one goes to the front of the queue and computes its tokens again later.
        Only a request that has the memory for itself alone and still does not fit fails.
        """
        if self.table.drop_oldest_idle():
            return []
        if len(self._running) == 1:
            (request,) = self._running.values()
            return [self._finish(request, "error", "the KV memory has no room for this request")]
        youngest = max(self._running.values(), key=lambda r: (r.admitted, r.key))
        assert youngest.seq is not None
        del self._running[youngest.key]
        self.table.release(youngest.seq, keep=False)
        youngest.seq = None
        self._waiting.appendleft(youngest)
        self.n_preempted += 1
        return []

    def _failed(self, chunks: Sequence[Chunk], code: int) -> list[Output]:
        """llama_decode broke: fail the requests in the batch, whose memory is now unknown."""
        self._failed_steps += 1
        if self._failed_steps >= MAX_FAILED_STEPS:
            raise EngineDiedError(f"llama_decode returned {code}, {self._failed_steps} times")
        return [
            self._finish(self._running[chunk.key], "error", f"llama_decode returned {code}")
            for chunk in chunks
        ]
