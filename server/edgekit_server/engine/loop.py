"""The step loop: admit, plan, decode, sample, tell the front. One thread owns the context."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from edgekit_server.engine import native, sampling, scheduler
from edgekit_server.engine.admission import Admission
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.memory import SeqTable
from edgekit_server.engine.pace import Pace
from edgekit_server.engine.request import Request, expired
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
        itl_target_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reuse`: whether this model's memory can be cut anywhere, so prefixes may stay."""
        self._context = context
        self._vocabulary = vocabulary
        self._emit = emit
        self._clock = clock
        self._batch = Batch(context.n_batch)
        self._pace = Pace(itl_target_s, context.n_ubatch)
        self.table = SeqTable(context.n_seq_max, context.n_ctx, context, reuse=reuse)
        self._capacity = context.n_seq_max + max_queue
        self._inbox: deque[Request | int] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self.admission = Admission(self.table, clock)
        self._running = self.admission.running
        self._failed_steps = 0
        self.n_steps = 0
        self.decode_s = self.busy_s = 0.0
        """Time inside llama_decode and in whole steps: what lies between is our own cost."""

    # -- from the intake thread ---------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether one more request may come in: running plus waiting below the bound."""
        n_inside = len(self._running) + len(self.admission.waiting) + len(self._inbox)
        return n_inside < self._capacity

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
            began = time.perf_counter()
            more = self.step()
            self.busy_s += time.perf_counter() - began
            if not more:
                self._wake.wait(IDLE_WAIT_S)
            self._wake.clear()

    def step(self) -> bool:
        """Do one turn; return False when there was nothing to do.

        Raises EngineDiedError when several steps in a row have failed.
        """
        outputs = self._take_inbox()
        open_requests = [*self.admission.waiting, *self._running.values()]
        late = expired(open_requests, self._clock())
        outputs += [self._finish(request, "timeout") for request in late]
        outputs += [self._finish(request, "length") for request in self.admission.admit()]
        if self._running:
            outputs += self._compute()
        if outputs:
            self._emit(Step(outputs))
        return bool(self._running or self.admission.waiting or self._inbox)

    def _take_inbox(self) -> list[Output]:
        outputs: list[Output] = []
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Request):
                self.admission.waiting.append(item)
                continue
            for request in [*self.admission.waiting, *self._running.values()]:
                if request.id == item:
                    outputs.append(self._finish(request, "cancelled"))
        return outputs

    def _remaining(self, request: Request) -> int:
        return self.admission.remaining(request)

    def _computed(self, request: Request) -> int:
        return self.admission.computed(request)

    def _compute(self) -> list[Output]:
        """Plan and decode until something fits; return what came out."""
        outputs: list[Output] = []
        while self._running:
            chunks = scheduler.plan(
                self._works(), n_batch=self._context.n_batch, n_ubatch=self._pace.rows()
            )
            n_rows = sum(chunk.count for chunk in chunks)
            self.admission.make_room(n_rows)
            rows = self._fill(chunks)
            began = time.perf_counter()
            code = self._context.decode(self._batch.ready())
            self.decode_s += time.perf_counter() - began
            if code == 0:
                outputs += self._advance(chunks, rows)
                if n_rows > len(chunks):  # a prompt's rows among them
                    self._pace.learn(n_rows, time.perf_counter() - began)
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
        asks = [sampling.Ask(r.chooser, row) for r, row in zip(drawing, rows, strict=True)]
        answers = sampling.choose(self._context, asks, self._vocabulary.pieces)
        return [self._take(r, choices[0]) for r, choices in zip(drawing, answers, strict=True)]

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
        self.admission.release(request, keep=keep)

    def _no_room(self) -> list[Output]:
        failing = self.admission.no_room()
        if failing is None:
            return []
        return [self._finish(failing, "error", "the KV memory has no room for this request")]

    def _failed(self, chunks: Sequence[Chunk], code: int) -> list[Output]:
        """llama_decode broke: fail the requests in the batch, whose memory is now unknown."""
        self._failed_steps += 1
        if self._failed_steps >= MAX_FAILED_STEPS:
            raise EngineDiedError(f"llama_decode returned {code}, {self._failed_steps} times")
        return [
            self._finish(self._running[chunk.key], "error", f"llama_decode returned {code}")
            for chunk in chunks
        ]
