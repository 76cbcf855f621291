"""Which tokens each sequence holds in KV memory, and how a new prompt reuses them.

A finished request leaves its sequence resident and idle. A new prompt takes the longest common
prefix from any resident: in place, when most of that resident is kept, else as a copy (in
unified memory a copy only marks cells as shared). Idle residents go least recently used first
when ids or cells run short.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np

IN_PLACE_SHARE = 0.5
"""A resident is taken over if at least this share of it stays; otherwise its prefix is copied."""


class Cells(Protocol):
    """The calls into native memory that this table makes."""

    def seq_rm(self, seq: int, start: int = 0) -> bool: ...
    def seq_cp(self, source: int, target: int, end: int) -> None: ...


@dataclass(slots=True)
class Resident:
    """One sequence id: the tokens whose cells it holds, and who uses it."""

    seq: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    owner: int | None = None
    last_used: int = 0
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """(birth, start, end): which cells, so that shared ones are counted once."""

    @property
    def idle(self) -> bool:
        return self.owner is None and len(self.tokens) > 0


class SeqTable:
    """All sequence ids of one context."""

    def __init__(self, n_seq_max: int, n_cells: int, cells: Cells, *, reuse: bool) -> None:
        """`reuse` is False for memories that cannot be cut at any position."""
        self.residents = [Resident(seq) for seq in range(n_seq_max)]
        self.n_cells = n_cells
        self._cells = cells
        self._reuse = reuse
        self._clock = count(1)
        self._births = count(1)

    def free_id(self) -> int | None:
        """Return the lowest id that holds nothing."""
        for resident in self.residents:
            if resident.owner is None and not resident.tokens:
                return resident.seq
        return None

    def idle(self) -> list[Resident]:
        """Residents nobody uses, least recently used first."""
        return sorted((r for r in self.residents if r.idle), key=lambda r: r.last_used)

    def has_room(self) -> bool:
        """Whether an id is free or can be made free."""
        return any(r.owner is None for r in self.residents)

    def used_cells(self) -> int:
        """Return the cells in use; a cell shared by several sequences counts once."""
        return _union(span for r in self.residents for span in r.spans)

    def busy_cells(self) -> int:
        """Return the cells that running requests hold; the rest can be had."""
        return _union(span for r in self.residents if r.owner is not None for span in r.spans)

    def acquire(self, owner: int, prompt: array[int], *, reuse: bool = True) -> tuple[int, int]:
        """Give a request a sequence; return (id, tokens of the prompt already in memory).

        At least one prompt token is left to compute, since only a computed token has logits.
        Raises LookupError if every id is in use.
        """
        donor, shared = self._best(prompt) if reuse and self._reuse else (None, 0)
        target = self._target(donor, shared)
        if target is donor:
            self._trim(target, shared)
        else:
            self.drop(target)
            if donor is not None:
                self._copy(donor, target, shared)
        target.owner = owner
        target.last_used = next(self._clock)
        return target.seq, shared

    def append(self, seq: int, tokens: array[int]) -> None:
        """Record tokens that a decode has put into memory."""
        resident = self.residents[seq]
        start = len(resident.tokens)
        resident.tokens.extend(tokens)
        end = len(resident.tokens)
        if resident.spans and resident.spans[-1][2] == start and resident.spans[-1][0] < 0:
            birth, first, _ = resident.spans[-1]
            resident.spans[-1] = (birth, first, end)
        else:
            resident.spans.append((-next(self._births), start, end))

    def release(self, seq: int, *, keep: bool) -> None:
        """End a request; its sequence stays resident if `keep` and the memory can be cut."""
        resident = self.residents[seq]
        resident.owner = None
        resident.last_used = next(self._clock)
        if not (keep and self._reuse):
            self.drop(resident)

    def drop(self, resident: Resident) -> None:
        """Empty a sequence."""
        self._cells.seq_rm(resident.seq)
        del resident.tokens[:]
        resident.spans.clear()

    def drop_oldest_idle(self, sparing: int | None = None) -> bool:
        """Empty the least recently used idle resident. False: there is none."""
        for resident in self.idle():
            if resident.seq != sparing:
                self.drop(resident)
                return True
        return False

    def most_used_cells(self) -> int:
        """Return a cheap upper bound of `used_cells`: shared ones count each time."""
        return sum(len(r.tokens) for r in self.residents)

    def shared_with_running(self, prompt: array[int]) -> int:
        """Return the tokens of a prompt that need no cells of their own: a running one's."""
        donor, shared = self._best(prompt) if self._reuse else (None, 0)
        return shared if donor is not None and not donor.idle else 0

    def _best(self, prompt: array[int]) -> tuple[Resident | None, int]:
        """Resident with the longest usable prefix; among equals an idle one."""
        best: Resident | None = None
        length = 0
        usable = prompt[:-1]
        for resident in self.residents:
            if not resident.tokens:
                continue
            common = common_prefix(resident.tokens, usable)
            better = common > length or (
                common == length > 0 and best is not None and resident.idle and not best.idle
            )
            if better:
                best, length = resident, common
        return best, length

    def _target(self, donor: Resident | None, shared: int) -> Resident:
        """Sequence to use: the donor itself, a free id, or the oldest idle one."""
        whole = donor is not None and donor.idle and shared >= len(donor.tokens) * IN_PLACE_SHARE
        if donor is not None and whole:
            return donor
        free = self.free_id()
        if free is not None:
            return self.residents[free]
        idle = self.idle()
        for resident in idle:
            if resident is not donor:
                return resident
        if idle:
            return idle[0]
        raise LookupError("every sequence is in use")

    def _trim(self, resident: Resident, length: int) -> None:
        if length == len(resident.tokens):
            return
        self._cells.seq_rm(resident.seq, length)
        del resident.tokens[length:]
        resident.spans = _closed(_clip(resident.spans, length))

    def _copy(self, donor: Resident, target: Resident, length: int) -> None:
        self._cells.seq_cp(donor.seq, target.seq, length)
        target.tokens = donor.tokens[:length]
        target.spans = _closed(_clip(donor.spans, length))


def common_prefix(a: array[int], b: array[int]) -> int:
    """Return how many leading tokens are equal."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    differ = np.frombuffer(a, np.int32, n) != np.frombuffer(b, np.int32, n)
    at = int(differ.argmax())
    return at if differ[at] else n


def _clip(spans: list[tuple[int, int, int]], length: int) -> list[tuple[int, int, int]]:
    return [(birth, start, min(end, length)) for birth, start, end in spans if start < length]


def _closed(spans: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Mark spans as not to be extended: what comes next has other cells at the same positions."""
    return [(abs(birth), start, end) for birth, start, end in spans]


def _union(spans: Iterable[tuple[int, int, int]]) -> int:
    """Cells covered by spans, each cell once: spans of one birth overlap, others never do."""
    total = 0
    reached: dict[int, int] = {}
    for birth, start, end in sorted((abs(birth), start, end) for birth, start, end in spans):
        begin = max(start, reached.get(birth, 0))
        if end > begin:
            total += end - begin
            reached[birth] = end
    return total
