"""Which tokens each sequence holds in KV memory, and how a new prompt reuses them.

A finished request leaves its sequence resident and idle. A new prompt takes the longest common
prefix from any resident: in place, when most of that resident is kept, else as a copy (in
unified memory a copy only marks cells as shared; between streams it moves bytes). What a store
in host RAM has is restored when it is worth more. Idle residents go least recently used first
when ids or cells run short, and into the store if there is one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import count

from edgekit_server.engine import checkpoints, prefix
from edgekit_server.engine.adapters import NO_ADAPTERS, AdapterSet
from edgekit_server.engine.cells import Blob
from edgekit_server.engine.checkpoints import WORTH, Checkpoint, Kind
from edgekit_server.engine.resident import Cells, Resident, Saved, Store
from edgekit_server.engine.reuse import Source, best

COPY_SHARE = 128
"""Copying a stream moves all its cells; computing one token costs as much as hundreds of them,
so a copy pays from this fraction of a stream on, with a wide margin."""
RESTORE_SHARE = 64
"""Restoring reads all that was saved: it has to spare at least this fraction of it."""
CHECKPOINT_BYTES = 256 * 2**20
"""Host RAM for the checkpoints of one engine."""


class SeqTable:
    """All sequence ids of one context."""

    def __init__(
        self,
        n_seq_max: int,
        n_cells: int,
        cells: Cells,
        *,
        reuse: bool,
        kind: Kind | None = None,
        store: Store | None = None,
        n_ubatch: int = 512,
        checkpoint_bytes: int = CHECKPOINT_BYTES,
    ) -> None:
        """`n_cells`: of all sequences together; `store`: where evicted sequences go."""
        self.residents = [Resident(seq) for seq in range(n_seq_max)]
        self.n_cells = n_cells
        self.kind = Kind() if kind is None else kind
        self.store = store
        self._cells = cells
        self.reuse = reuse
        """Whether anything is kept."""
        self._n_ubatch = n_ubatch
        self._checkpoint_bytes = checkpoint_bytes
        self._clock = count(1)
        self._births = count(1)
        self.copy_min = WORTH
        """Tokens that make a copy between sequences worth while."""
        if not self.kind.unified:
            self.copy_min = max(WORTH, n_cells // n_seq_max // COPY_SHARE)

    # -- what there is ------------------------------------------------------------------------

    def free_id(self) -> int | None:
        """Return the lowest id that holds nothing."""
        for resident in self.residents:
            if resident.owner is None and not resident.tokens:
                return resident.seq
        return None

    def idle(self) -> list[Resident]:
        """Residents nobody uses, least recently used first."""
        return sorted((r for r in self.residents if r.idle), key=lambda r: r.last_used)

    def n_free(self) -> int:
        """Return how many ids are free or can be made free."""
        return sum(r.owner is None for r in self.residents)

    def has_room(self) -> bool:
        """Whether an id is free or can be made free."""
        return self.n_free() > 0

    def used_cells(self) -> int:
        """Return the cells in use; a cell shared by several sequences counts once."""
        return prefix.union(span for r in self.residents for span in r.spans)

    def busy_cells(self) -> int:
        """Return the cells that running requests hold; the rest can be had."""
        return prefix.union(s for r in self.residents if r.owner is not None for s in r.spans)

    def most_used_cells(self) -> int:
        """Return a cheap upper bound of `used_cells`: shared ones count each time."""
        return sum(len(r.tokens) for r in self.residents)

    def available(self, prompt: array[int], adapters: AdapterSet = NO_ADAPTERS) -> int:
        """Return how many tokens of a prompt a new sequence could take from residents now."""
        return self._best(prompt, adapters)[0].length if self.reuse else 0

    def shared_with_running(self, prompt: array[int], adapters: AdapterSet = NO_ADAPTERS) -> int:
        """Return the tokens of a prompt that need no cells of their own: a running one's."""
        if not self.reuse or not self.kind.unified:
            return 0
        source, _ = self._best(prompt, adapters)
        return source.length if source.donor is not None and not source.donor.idle else 0

    @property
    def can_copy(self) -> bool:
        """Whether a new sequence may take its beginning from a running one."""
        return self.kind.unified or self.kind.exact

    def pause(self, seq: int) -> int | None:
        """Return how many tokens may be computed before the next checkpoint; None: any number."""
        resident = self.residents[seq]
        length = len(resident.tokens)
        return next((stop - length for stop in resident.stops if stop > length), None)

    def stop_at(self, seq: int, length: int) -> None:
        """Ask for a checkpoint that another prompt is going to start from."""
        stops = self.residents[seq].stops
        if not self.kind.exact and length not in stops:
            stops.append(length)
            stops.sort()

    # -- a request's life ---------------------------------------------------------------------

    def acquire(
        self,
        owner: int,
        prompt: array[int],
        *,
        reuse: bool = True,
        adapters: AdapterSet = NO_ADAPTERS,
    ) -> tuple[int, int]:
        """Give a request a sequence; return (id, tokens of the prompt already in memory).

        At least one prompt token is left to compute, since only a computed token has logits.
        Raises LookupError if every id is in use.
        """
        reuse = reuse and self.reuse
        source, missed = self._best(prompt, adapters) if reuse else (Source(), 0)
        target = self._target(source)
        shared = self._restore(target, prompt, source, adapters) if reuse else None
        if shared is not None:
            pass
        elif target is source.donor:
            shared = self._cut(target, source.length, source.checkpoint)
        else:
            self.evict(target)
            shared = 0 if source.donor is None else self._copy(source, target)
        target.owner, target.adapters = owner, adapters
        target.last_used = next(self._clock)
        target.stops = []
        if reuse and not self.kind.exact:
            target.stops = checkpoints.stops(len(prompt), shared, self._n_ubatch, (missed,))
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
        if end in resident.stops:
            self._checkpoint(resident)

    def release(self, seq: int, *, keep: bool) -> None:
        """End a request; its sequence stays resident if `keep` and the memory allows reuse."""
        resident = self.residents[seq]
        resident.owner = None
        resident.last_used = next(self._clock)
        resident.stops = []
        if not (keep and self.reuse):
            self.drop(resident)
        elif resident.sound is not None:
            self._cut(resident, resident.sound, None)
            resident.sound = None

    def preempt(self, seq: int, *, keep: bool) -> None:
        """Take a running request's sequence away; `keep`: into the store, if it has room."""
        resident = self.residents[seq]
        if keep:
            self.save(resident, hurried=False)
        resident.owner = None
        self.drop(resident)

    def shift(self, seq: int, keep: int, discard: int) -> None:
        """Forget `discard` tokens after the first `keep`; the later ones move forward.

        Where they cannot move (cells that others share, memory without positions) they are
        forgotten as well, and the caller computes them again.
        """
        resident = self.residents[seq]
        end = keep + discard
        for other in self.idle():
            if prefix.overlap(resident.spans, other.spans, end):
                self.evict(other)
        shared = any(
            prefix.overlap(resident.spans, other.spans, end)
            for other in self.residents
            if other is not resident
        )
        if not self.kind.exact or not self._cells.can_shift or shared:
            self._cut(resident, keep, None) if self.kind.exact else self.drop(resident)
            return
        self._cells.seq_rm(seq, keep, end)
        self._cells.seq_add(seq, end, -discard)
        del resident.tokens[keep:end]
        tail = (-next(self._births), keep, len(resident.tokens))
        resident.spans = [*prefix.closed(prefix.clip(resident.spans, keep)), tail]
        resident.sound = min(keep, resident.sound if resident.sound is not None else keep)

    # -- making room --------------------------------------------------------------------------

    def drop(self, resident: Resident) -> None:
        """Empty a sequence."""
        self._cells.seq_rm(resident.seq)
        del resident.tokens[:]
        resident.spans.clear()
        resident.checkpoints = []
        resident.stored = 0
        resident.sound = None

    def evict(self, resident: Resident) -> None:
        """Empty an idle sequence, into the store if that has room and time."""
        if resident.tokens:
            self.save(resident, hurried=any(r.owner is not None for r in self.residents))
        self.drop(resident)

    def drop_oldest_idle(self, sparing: int | None = None) -> bool:
        """Empty the least recently used idle resident. False: there is none."""
        for resident in self.idle():
            if resident.seq != sparing:
                self.evict(resident)
                return True
        return False

    def save(self, resident: Resident, *, hurried: bool) -> bool:
        """Copy a sequence to the store; False: it is there, or the store does not want it."""
        tokens = resident.tokens
        if self.store is None or resident.sound is not None:
            return False
        if len(tokens) < WORTH or resident.stored >= len(tokens):
            return False
        n_bytes = self._cells.state_size(resident.seq) + sum(
            c.blob.nbytes for c in resident.checkpoints
        )
        if not self.store.wants(tokens, n_bytes, resident.adapters, hurried=hurried):
            return False
        blob = self._cells.save(resident.seq)
        if blob is None:
            return False
        saved = Saved(tokens[:], blob, tuple(resident.checkpoints), resident.adapters)
        self.store.put(saved)
        resident.stored = len(tokens)
        return True

    # -- parts --------------------------------------------------------------------------------

    def _best(self, prompt: array[int], adapters: AdapterSet) -> tuple[Source, int]:
        alike = [r for r in self.residents if r.adapters == adapters]
        return best(alike, prompt, self.kind, self._cells.seq_start, self.copy_min)

    def _target(self, source: Source) -> Resident:
        """Sequence to use: the donor itself, a free id, or the oldest idle one."""
        if source.donor is not None and not source.copied:
            return source.donor
        free = self.free_id()
        if free is not None:
            return self.residents[free]
        idle = self.idle()
        for resident in idle:
            if resident is not source.donor:
                return resident
        if idle:
            return idle[0]
        raise LookupError("every sequence is in use")

    def _restore(
        self, target: Resident, prompt: array[int], source: Source, adapters: AdapterSet
    ) -> int | None:
        """Take a prompt's beginning from the store, if that beats what residents have."""
        if self.store is None or target.seq in self._cells.pending:
            return None
        saved, n = self.store.find(prompt, self.kind, adapters)
        if saved is None or n - source.length < max(WORTH, len(saved.tokens) // RESTORE_SHARE):
            return None
        if self.kind.unified and self.busy_cells() + len(saved.tokens) > self.n_cells:
            return None
        self.evict(target)
        while self.kind.unified and self.used_cells() + len(saved.tokens) > self.n_cells:
            self.drop_oldest_idle()
        if not self._cells.load(target.seq, saved.blob):
            self.drop(target)
            return 0
        target.tokens = saved.tokens[:]
        target.spans = [(next(self._births), 0, len(target.tokens))]
        target.checkpoints = list(saved.checkpoints)
        target.stored = len(target.tokens)
        start = 0 if self.kind.exact else self._cells.seq_start(target.seq)
        common = target.common(prompt)
        kept, checkpoint = checkpoints.keepable(
            self.kind, common, len(target.tokens), start, target.checkpoints
        )
        return self._cut(target, kept, checkpoint)

    def _cut(self, resident: Resident, length: int, checkpoint: Checkpoint | None) -> int:
        """Keep the first tokens; return how many that were possible: all of them or none."""
        if length == len(resident.tokens):
            resident.spans = prefix.closed(resident.spans)
            return length
        done = checkpoint is None or self._cells.load(resident.seq, checkpoint.blob, partial=True)
        if not (done and length > 0 and self._cells.seq_rm(resident.seq, length)):
            self.drop(resident)
            return 0
        del resident.tokens[length:]
        resident.spans = prefix.closed(prefix.clip(resident.spans, length))
        self._forget_after(resident, length)
        return length

    def _copy(self, source: Source, target: Resident) -> int:
        """Copy a prefix; return its length, or 0 if its checkpoint was refused."""
        donor, length = source.donor, source.length
        assert donor is not None
        if donor is target:  # the only id left
            return self._cut(target, length, source.checkpoint)
        self._cells.seq_cp(donor.seq, target.seq, length)
        checkpoint = source.checkpoint
        if checkpoint is not None:
            done = self._cells.load(target.seq, checkpoint.blob, partial=True)
            if not (done and self._cells.seq_rm(target.seq, length)):
                self.drop(target)
                return 0
        target.tokens = donor.tokens[:length]
        target.spans = prefix.closed(prefix.clip(donor.spans, length))
        if not self.kind.unified:
            target.spans = [(next(self._births), 0, length)]
        target.checkpoints = list(donor.checkpoints)
        self._forget_after(target, length)
        return length

    def _forget_after(self, resident: Resident, length: int) -> None:
        resident.checkpoints = [c for c in resident.checkpoints if c.n_tokens <= length]
        resident.stored = min(resident.stored, length)
        if resident.sound is not None and resident.sound >= length:
            resident.sound = None

    def _checkpoint(self, resident: Resident) -> None:
        """Save what cannot be cut; older and idle sequences' checkpoints give way."""
        n_bytes = self._cells.state_size(resident.seq, partial=True)
        own = resident.checkpoints
        if n_bytes > self._checkpoint_bytes:
            return
        givers = [r for r in [*self.idle(), resident] if r.checkpoints]
        while self._checkpoint_total() + n_bytes > self._checkpoint_bytes and givers:
            givers[0].checkpoints.pop(0)
            givers = [r for r in givers if r.checkpoints]
        del own[: max(0, len(own) + 1 - checkpoints.MOST)]
        if self._checkpoint_total() + n_bytes > self._checkpoint_bytes:
            return
        blob = self._cells.save(resident.seq, partial=True)
        if blob is not None:
            own.append(Checkpoint(len(resident.tokens), blob))

    def _checkpoint_total(self) -> int:
        blobs: Iterable[Blob] = (c.blob for r in self.residents for c in r.checkpoints)
        return sum({id(blob): blob.nbytes for blob in blobs}.values())
