"""The step loop: admit, plan, decode, sample, tell the front. One thread owns the context."""

from __future__ import annotations

import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from edgekit_server.engine import answer, native, sampling, scheduler
from edgekit_server.engine.adapters import Adapters
from edgekit_server.engine.admission import Admission
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.checkpoints import Kind
from edgekit_server.engine.hostcache import HostCache
from edgekit_server.engine.keeper import Keeper
from edgekit_server.engine.memory import SeqTable
from edgekit_server.engine.pace import Pace
from edgekit_server.engine.pool import Pool
from edgekit_server.engine.request import Request, expired, spare
from edgekit_server.engine.scheduler import Chunk, Work
from edgekit_server.engine.speculate import Drafter, Speculator
from edgekit_server.engine.vocabulary import Vocabulary
from edgekit_server.engine.wire import Output, Step
from edgekit_server.errors import EngineDiedError

MAX_FAILED_STEPS = 3
"""Failures in a row after which the backend itself is taken for broken (a lost GPU)."""
IDLE_WAIT_S = 0.5
NO_DRAFTS = array("i")


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
        itl_target_s: float = 0.5,
        speculator: Speculator | None = None,
        kind: Kind | None = None,
        store: HostCache | None = None,
        aside: Callable[[], bool] | None = None,
        adapters: Adapters | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reuse`: whether prefixes stay in memory; `kind`: how that may be cut, anywhere if not
        given; `store`: where they go when they lose their place there.

        `speculator`: None turns drafts off; a memory that cannot be cut does so, too.
        `aside`: other work in small parts, one after each step; returns whether there is more.
        """
        self._context = context
        self._vocabulary = vocabulary
        self._emit = emit
        self._clock = clock
        self._batch = Batch(context.n_batch)
        self._pool = Pool(context.n_threads)
        self._pace = Pace(itl_target_s, context.n_ubatch)
        self._store = store
        self.table = SeqTable(
            context.n_seq_max,
            context.n_ctx,
            context,
            reuse=reuse,
            kind=kind or Kind(unified=context.unified),
            store=store,
            n_ubatch=context.n_ubatch,
        )
        self._aside = aside
        self._adapters = adapters
        self._speculator = speculator if reuse and self.table.kind.exact else None
        self._drafts: dict[int, array[int]] = {}
        """Guessed tokens of this step, by request key."""
        self._capacity = context.n_seq_max + max_queue
        self._inbox: deque[Request | int] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self.admission = Admission(self.table, clock)
        self._keeper = Keeper(self.admission, store, self._wake.is_set)
        self._running = self.admission.running
        self._failed_steps = 0
        self.n_steps = self.n_drafted = self.n_accepted = 0
        self.decode_s = self.busy_s = 0.0
        """Time inside llama_decode and in whole steps: what lies between is our own cost."""

    # -- from the intake thread ---------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether one more request may come in. Those about to be cancelled no longer count: a
        typist cancels many within one long step."""
        inbox = list(self._inbox)  # like the unpacking below, whole in one turn of the GIL
        gone = {item for item in inbox if isinstance(item, int)}
        inside = [*self._running.values(), *self.admission.waiting]
        inside += [item for item in inbox if isinstance(item, Request)]
        return sum(request.id not in gone for request in inside) < self._capacity

    def submit(self, request: Request) -> None:
        if self._store is not None and request.cache_prompt:
            self._store.prefetch(request.tokens, self.table.kind, request.adapters)
        self._inbox.append(request)
        self._wake.set()

    def cancel(self, request_id: int) -> None:
        """End a request before the next step; unknown ids are those that have just ended."""
        self._inbox.append(request_id)
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def wake(self) -> None:
        """There is other work to do."""
        self._wake.set()

    # -- the step thread ----------------------------------------------------------------------

    def run(self) -> None:
        """Step until stopped; sleep while there is nothing to do."""
        while not self._stopping:
            began, n_before = time.perf_counter(), self.n_steps
            more = self.step()
            if self.n_steps > n_before:  # an idle turn leaves the pulse as it was
                self.busy_s += time.perf_counter() - began
            if not more:
                self._keeper.rest(called=self._wake.wait(IDLE_WAIT_S))
            self._wake.clear()
        self._keeper.close()

    def step(self) -> bool:
        """Do one turn; return False when there was nothing to do.

        Raises EngineDiedError when several steps in a row have failed.
        """
        outputs = self._take_inbox()
        open_requests = [*self.admission.waiting, *self._running.values()]
        late = expired(open_requests, self._clock())
        outputs += [self._finish(request, "timeout") for request in late]
        outputs += [self._finish(request, "length") for request in self.admission.admit()]
        self.admission.shift()
        if self._running:
            outputs += self._compute()
        if outputs:
            self._emit(Step(outputs))
        more = self._aside is not None and self._aside()
        return more or bool(self._running or self.admission.waiting or self._inbox)

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
        drafting = self._speculator is not None
        while self._running:
            works = self.admission.paused(self._works(drafting))
            n_batch = self._context.n_batch
            chunks = scheduler.plan(
                works, n_batch=n_batch, n_alone=self._pace.alone(n_batch), n_mixed=self._pace.rows()
            )
            n_rows = sum(chunk.n_rows for chunk in chunks)
            self.admission.make_room(n_rows)
            rows = self._fill(chunks)
            began = time.perf_counter()
            code = self._context.decode(self._batch.ready())
            self.decode_s += time.perf_counter() - began
            if code == 0:
                outputs += self._advance(chunks, rows, began)
                decoding = all(chunk.decoding for chunk in chunks)
                self._pace.learn(n_rows, time.perf_counter() - began, decoding=decoding)
                self.n_steps += 1
                self._failed_steps = 0
                return outputs
            if code == 1 and self._drafts:
                drafting = False  # guesses may take nobody's memory
                continue
            outputs += self._no_room() if code == 1 else self._failed(chunks, code)
        return outputs

    def _works(self, drafting: bool) -> list[Work]:
        now = self._clock()
        works: list[Work] = []
        decoding: list[Request] = []
        running: Iterable[Request] = self._running.values()
        if self._adapters is not None:
            running = self._adapters.turn(self._context, running)
        for request in running:
            remaining = self._remaining(request)
            decodes = remaining <= 1 + answer.MOST_FORCED and request.n_answer > 0
            if decodes:
                decoding.append(request)
            assert request.seq is not None
            works.append(Work(request.key, request.seq, remaining, decodes, now - request.arrived))
        self._drafts = self._guess(decoding) if drafting else {}
        if not self._drafts:
            return works
        drafts = self._drafts
        return [replace(w, n_drafts=len(drafts[w.key])) if w.key in drafts else w for w in works]

    def _guess(self, decoding: list[Request]) -> dict[int, array[int]]:
        """Return drafts for the decoding requests, as many as outputs, rows and cells allow."""
        if self._speculator is None or not decoding:
            return {}
        n_known = sum(self._remaining(request) for request in decoding)
        room = self._context.n_outputs_max - len(self._running)
        room = min(room, self._context.n_batch - n_known)
        if len(decoding) < len(self._running):  # prompts keep at least half of the step
            room = min(room, self._pace.rows() // 2 - n_known)
        if self.table.kind.unified:
            busy = sum(len(request.tokens) for request in self._running.values())
            if busy + room > self.table.n_cells:  # counts shared cells twice: look closer
                busy = self.table.busy_cells() + n_known
            room = min(room, self.table.n_cells - busy)
        return self._speculator.propose(decoding, room)

    def _fill(self, chunks: Sequence[Chunk]) -> list[int]:
        """Write the batch; return the batch row of each chunk that asks for output."""
        self._batch.clear()
        rows: list[int] = []
        for chunk in chunks:
            request = self._running[chunk.key]
            start = self._computed(request)
            part = request.tokens[start : start + chunk.count]
            if chunk.n_drafts:
                part += self._drafts[chunk.key][: chunk.n_drafts]
            row = self._batch.add(
                chunk.seq, start, part, output=chunk.output, n_drafts=chunk.n_drafts
            )
            if chunk.output:
                rows.append(row)
        return rows

    def _advance(self, chunks: Sequence[Chunk], rows: Sequence[int], began: float) -> list[Output]:
        """Record what was computed and draw tokens for each finished chunk.

        `began`: when the step's decode did, for what its rows have cost.
        """
        drawing: list[tuple[Request, array[int]]] = []
        for chunk in chunks:
            request = self._running[chunk.key]
            start = self._computed(request)
            self.table.append(chunk.seq, request.tokens[start : start + chunk.count])
            if chunk.output:
                drafts = self._drafts.get(chunk.key, NO_DRAFTS)[: chunk.n_drafts]
                drawing.append((request, drafts))
        if not drawing:
            return []
        asks = [sampling.Ask(r.chooser, row, d) for (r, d), row in zip(drawing, rows, strict=True)]
        answers = sampling.choose(self._context, asks, self._vocabulary.pieces, self._pool)
        seconds = time.perf_counter() - began
        taken = [answer.take(r, c) for (r, _), c in zip(drawing, answers, strict=True)]
        self._settle(chunks, seconds, drawing, taken)
        broken = [r for (r, _), took in zip(drawing, taken, strict=True) if took.error]
        spared = spare(broken)
        outputs = [
            self._output(
                request, took if request not in spared else replace(took, finish=None, error=None)
            )
            for (request, _), took in zip(drawing, taken, strict=True)
            if took.tokens or request not in spared
        ]
        if broken:
            # Without flash attention a masked cell still counts 0 times its number: NaN.
            self.admission.clear()
            self._context.wipe()
        return outputs

    def _settle(
        self,
        chunks: Sequence[Chunk],
        seconds: float,
        drawing: Sequence[tuple[Request, array[int]]],
        taken: Sequence[answer.Taken],
    ) -> None:
        """Keep the right drafts in memory, cut the wrong ones, and learn from both."""
        fates: list[tuple[Drafter, int, int]] = []
        for (request, drafts), took in zip(drawing, taken, strict=True):
            if not drafts:
                continue
            assert request.seq is not None
            n_right = answer.n_right(drafts, took.tokens)
            self.n_drafted += len(drafts)
            self.n_accepted += n_right
            self.table.append(request.seq, drafts[:n_right])
            if n_right < len(drafts):
                self._context.seq_rm(request.seq, self._computed(request))
            if request.drafter is not None:
                fates.append((request.drafter, len(drafts), n_right))
        if self._speculator is not None:
            alone = all(chunk.decoding for chunk in chunks)
            n_rows = sum(chunk.n_rows for chunk in chunks if chunk.decoding)
            self._speculator.settle(n_rows, seconds if alone else None, fates)

    def _output(self, request: Request, taken: answer.Taken) -> Output:
        """Tell what a step added to a request, and end the request if that was all."""
        if taken.finish is not None and not taken.tokens:
            return self._finish(request, taken.finish, taken.error)
        pieces, controls = self._vocabulary.pieces, self._vocabulary.controls
        n_cached, prefill_ms = self._first_figures(request)
        scored = [choice for choice in taken.choices if choice.logprob is not None]
        output = Output(
            id=request.id,
            tokens=taken.tokens,
            pieces=[(pieces[token], token in controls) for token in taken.tokens],
            logprobs=[choice.logprob for choice in scored if choice.logprob is not None],
            top_logprobs=[choice.top for choice in scored],
            finish=taken.finish,
            error=taken.error,
            n_cached=n_cached,
            prefill_ms=prefill_ms,
        )
        if taken.finish is not None:
            n_drafted, n_accepted = guessed(request)
            output = replace(output, n_drafted=n_drafted, n_accepted=n_accepted)
            self._release(request, keep=taken.finish != "error")
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
        n_drafted, n_accepted = guessed(request)
        return Output(
            request.id,
            [],
            [],
            finish=reason,
            error=error,
            n_cached=n_cached,
            prefill_ms=prefill_ms,
            n_drafted=n_drafted,
            n_accepted=n_accepted,
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


def guessed(request: Request) -> tuple[int | None, int | None]:
    """Return how many drafts a request had and how many were right; None if it had no drafter."""
    drafter = request.drafter
    return (None, None) if drafter is None else (drafter.n_drafted, drafter.n_accepted)
