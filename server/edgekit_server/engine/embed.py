"""Texts to vectors or scores, in a context of their own, one compute pass at a time.

The loop gives this a turn after each step, so running streams are delayed by one pass at most.
Texts of several requests share a pass; requests take turns, so a question does not wait behind
an index of a thousand texts.

Two ways to compute. Where all rows of a text count (mean, cls) or see each other (encoders), a
text goes through in one pass, with outputs for every row. Where only the last row counts, the
rows before it need no output, and a decoder computes those first, in as many passes as it takes;
an output row of a large vocabulary costs as much as many layers do.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit_server.engine import wire
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.pooled import Pooled, Vector
from edgekit_server.errors import EngineDiedError, ServerError

MAX_FAILED_PASSES = 3
MOST_WAITING = 64
"""Requests, running ones among them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a model makes vectors."""

    pooling: str
    whole: bool
    """A text in one pass, all its rows with outputs; else only its last rows have them."""
    n_out: int
    n_ctx: int
    """The most tokens of one text."""
    n_rows: int
    """The most rows of a pass."""
    n_outputs: int
    """The most rows with outputs of a pass."""
    n_seq: int


@dataclass(slots=True, eq=False)
class Job:
    """One Embed request."""

    id: int
    prompts: list[array[int]]
    norm: int = 2
    dimensions: int | None = None
    next: int = 0
    """First prompt that has not begun."""
    done: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Slot:
    """A prompt under way."""

    seq: int
    job: Job
    index: int
    n_done: int = 0

    @property
    def tokens(self) -> array[int]:
        return self.job.prompts[self.index]

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.n_done


def rows(remaining: Sequence[int], n_rows: int, n_outputs: int) -> tuple[bool, list[int]]:
    """Return (whether all texts end in this pass, rows of each). Pure.

    `remaining`: tokens of each text that are to be computed. Texts end together, once their
    last rows fit; until then all but the last row of each may be computed. There are never more
    texts than `n_outputs` or `n_rows`.
    """
    if sum(remaining) <= min(n_rows, n_outputs):
        return True, list(remaining)
    counts: list[int] = []
    left = n_rows
    for n in remaining:
        counts.append(min(n - 1, left))
        left -= counts[-1]
    return False, counts


def normalised(vector: Vector, norm: int, dimensions: int | None = None) -> Vector:
    """Return the first `dimensions` values, scaled: see wire.Embed.norm. Zeros stay zeros."""
    cut = vector[:dimensions].astype(np.float64)
    if norm < 0:
        return vector[:dimensions]
    size = np.abs(cut)
    total = size.max() / 32760.0 if norm == 0 else (size**norm).sum() ** (1.0 / norm)
    return (cut / total if total > 0 else cut).astype("<f4")


class Embedder:
    """All Embed requests of one engine. `turn` belongs to the step thread; `submit`, `cancel`
    and `has_room` may be called from others."""

    def __init__(
        self, shape: Shape, opened: Callable[[], Pooled], emit: Callable[[wire.Message], None]
    ) -> None:
        """`opened` makes the context, when the first text comes."""
        self.shape = shape
        self.n_passes = 0
        self._open = opened
        self._emit = emit
        self._inbox: deque[Job | int] = deque()
        self._jobs: deque[Job] = deque()
        """Those with prompts that have not begun; the first is next."""
        self._slots: list[_Slot] = []
        self._pooled: Pooled | None = None
        self._batch: Batch | None = None
        self._failed = 0

    def has_room(self) -> bool:
        """Whether one more request may come in."""
        return len(self._inbox) + len(self._jobs) + len(self._slots) < MOST_WAITING

    def submit(self, job: Job) -> None:
        self._inbox.append(job)

    def cancel(self, job_id: int) -> None:
        """Give a request up; unknown ids are those just done, or of other kinds."""
        self._inbox.append(job_id)

    def turn(self) -> bool:
        """Compute one pass; return whether there is more to do.

        Raises EngineDiedError when several passes in a row have failed.
        """
        self._take_inbox()
        if not self._jobs and not self._slots:
            return False
        pooled = self._pooled
        if pooled is None:
            try:
                pooled = self._pooled = self._open()
            except ServerError as error:
                self._reject({*self._jobs}, error.code, error.message)
                return False
            self._batch = Batch(pooled.context.n_batch)
        self._begin()
        self._compute(pooled)
        return bool(self._jobs or self._slots or self._inbox)

    def _take_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Job):
                self._jobs.append(item)
                continue
            self._drop({job for job in self._jobs if job.id == item})
            self._drop({slot.job for slot in self._slots if slot.job.id == item})

    def _drop(self, jobs: set[Job]) -> None:
        self._jobs = deque(job for job in self._jobs if job not in jobs)
        for slot in [slot for slot in self._slots if slot.job in jobs]:
            self._end(slot)

    def _reject(self, jobs: set[Job], code: str, message: str) -> None:
        self._drop(jobs)
        for job in sorted(jobs, key=lambda job: job.id):
            self._emit(wire.Rejected(job.id, code, message))

    def _end(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        if self._pooled is not None:  # an encoder has no memory, and does not mind
            self._pooled.context.seq_rm(slot.seq)

    def _begin(self) -> None:
        """Give sequences to prompts, one request after the other, while there is room."""
        room = self.shape.n_rows if self.shape.whole else self.shape.n_ctx
        room -= sum(len(slot.tokens) for slot in self._slots)
        free = sorted(set(range(self.shape.n_seq)) - {slot.seq for slot in self._slots})
        for seq in free:
            if not self._jobs:
                break
            job = self._jobs[0]
            n = len(job.prompts[job.next])
            if n > room and self._slots:
                break
            room -= n
            self._slots.append(_Slot(seq, job, job.next))
            job.next += 1
            self._jobs.popleft()
            if job.next < len(job.prompts):
                self._jobs.append(job)
        self._slots.sort(key=lambda slot: slot.seq)

    def _compute(self, pooled: Pooled) -> None:
        shape, batch = self.shape, self._batch
        assert batch is not None
        slots = list(self._slots)
        remaining = [slot.remaining for slot in slots]
        ends, counts = (
            (True, remaining) if shape.whole else rows(remaining, shape.n_rows, shape.n_outputs)
        )
        batch.clear()
        for slot, count in zip(slots, counts, strict=True):
            if count:
                part = slot.tokens[slot.n_done : slot.n_done + count]
                batch.add(slot.seq, slot.n_done, part, output=ends, n_drafts=(count - 1) * ends)
        code = pooled.decode(batch.ready(), vectors=ends)
        self.n_passes += 1
        if code != 0:
            self._failed += 1
            if self._failed >= MAX_FAILED_PASSES:
                raise EngineDiedError(f"llama_decode returned {code}, {self._failed} times")
            jobs = {slot.job for slot in slots}
            self._reject(jobs, "embedding_failed", f"llama_decode returned {code}")
            return
        self._failed = 0
        for slot, count in zip(slots, counts, strict=True):
            slot.n_done += count
        if ends:
            for slot in slots:
                self._finish(slot, pooled.vector(slot.seq))

    def _finish(self, slot: _Slot, vector: Vector) -> None:
        job = slot.job
        if slot not in self._slots:  # another prompt of its request failed
            return
        self._end(slot)
        if not np.isfinite(vector).all():
            message = f"prompt {slot.index} gave a vector with no numbers in it"
            self._reject({job}, "embedding_failed", message)
            return
        if self.shape.pooling != "rank":
            vector = normalised(vector, job.norm, job.dimensions)
        job.done[slot.index] = vector.tobytes()
        if len(job.done) == len(job.prompts):
            vectors = [job.done[i] for i in range(len(job.prompts))]
            self._emit(wire.Embedded(job.id, vectors, [len(p) for p in job.prompts]))
