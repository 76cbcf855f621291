"""llama.cpp's memory and arithmetic, simulated: what the loop may ask, checked at every call.

Each cell knows its token; a row of logits follows from the tokens that its sequence really
holds. So a wrong position, a stale cell or a lost prefix changes the text. What llama.cpp would
abort on, answer with an error or accept in silence is an AssertionError here.
"""

from __future__ import annotations

import itertools
from array import array
from typing import Any

import numpy as np

from edgekit_server.engine import native
from edgekit_server.engine.cells import Blob
from edgekit_server.engine.chains import Chain
from edgekit_server.engine.vocabulary import Vocabulary

N_VOCAB = 48
N_STATES = 1009
LOGITS = np.random.default_rng(7).standard_normal((N_STATES, N_VOCAB)).astype(np.float32)
END = 2

VOCABULARY = Vocabulary(
    pieces=[b"%d," % i for i in range(N_VOCAB)],
    controls=frozenset({0, 1, END}),
    ends=frozenset({END}),
    suppressed=(),
    bos=None,
    eos=None,
    fim={},
    longest_piece=3,
    exact_bytes=True,
)


def state_after(tokens: array[int] | list[int], memory: int | None) -> int:
    """Return which row of LOGITS follows; `memory`: how many last tokens decide, None: all."""
    state = 1
    for token in tokens if memory is None else tokens[-memory:]:
        state = (state * 31 + int(token) * 7 + 3) % N_STATES
    return state


class SimulatedContext:
    """Stands where the loop expects a native.Context."""

    can_shift = True

    def __init__(
        self,
        *,
        n_ctx: int,
        n_seq_max: int,
        n_batch: int,
        n_ubatch: int,
        unified: bool = True,
        n_outputs_max: int | None = None,
        memory: int | None = None,
    ) -> None:
        """`memory`: how many last tokens decide the next; few make texts that repeat."""
        self.n_ctx, self.n_seq_max, self.n_batch = n_ctx, n_seq_max, n_batch
        self.n_ubatch, self.unified = n_ubatch, unified
        self.n_ctx_seq = n_ctx if unified else n_ctx // n_seq_max
        self.n_outputs_max = n_outputs_max or n_seq_max
        self.n_vocab, self.n_threads = N_VOCAB, 1
        self.pending: set[int] = set()
        self.cells: list[list[int]] = [[] for _ in range(n_seq_max)]
        """Per sequence the ids of its cells, in order of position."""
        self.tokens: dict[int, int] = {}
        """Token in each cell."""
        self.n_rows = self.n_full = self.n_loads = 0
        self.computed: list[tuple[int, int]] = []
        """(sequence, rows) of the last decode."""
        self._memory = memory
        self._next = itertools.count()
        self._logits = np.zeros((0, N_VOCAB), np.float32)
        self._output_rows: list[int] = []
        self._candidates = native.candidates(N_VOCAB)

    # -- memory -------------------------------------------------------------------------------

    def _checked(self, seq: int) -> int:
        assert 0 <= seq < self.n_seq_max, f"sequence {seq}"
        return seq

    def held(self, seq: int) -> list[int]:
        """Return the tokens that a sequence holds."""
        return [self.tokens[cell] for cell in self.cells[seq]]

    def used(self) -> int:
        """Return the cells in use."""
        if self.unified:
            return len({cell for cells in self.cells for cell in cells})
        return sum(map(len, self.cells))

    def seq_length(self, seq: int) -> int:
        return len(self.cells[self._checked(seq)])

    def seq_start(self, seq: int) -> int:
        return 0 if self.cells[self._checked(seq)] else -1

    def seq_rm(self, seq: int, start: int = 0, end: int = -1) -> bool:
        cells = self.cells[self._checked(seq)]
        assert end == -1, "only shifts cut the middle"
        assert 0 <= start <= len(cells)
        del cells[start:]
        return True

    def seq_add(self, seq: int, start: int, delta: int) -> None:
        raise AssertionError("nobody asked for a shift")

    def seq_cp(self, source: int, target: int, end: int) -> None:
        donor = self.cells[self._checked(source)]
        assert source != target
        assert not self.cells[self._checked(target)], "copied onto what is there"
        assert 0 < end <= len(donor)
        if self.unified:
            self.cells[target] = donor[:end]
            return
        self.cells[target] = [next(self._next) for _ in range(end)]
        self.tokens |= {
            new: self.tokens[old] for new, old in zip(self.cells[target], donor, strict=False)
        }
        self.pending |= {source, target}

    def wipe(self) -> None:
        self.cells = [[] for _ in range(self.n_seq_max)]

    def state_size(self, seq: int, *, partial: bool = False) -> int:
        assert not partial
        return 4 * self.seq_length(seq)

    def save(self, seq: int, *, partial: bool = False) -> Blob | None:
        assert not partial
        if seq in self.pending:
            return None
        return np.array(self.held(seq), np.int32).view(np.uint8)

    def load(self, seq: int, blob: Blob, *, partial: bool = False) -> bool:
        assert not partial
        assert seq not in self.pending
        tokens = blob.view(np.int32).tolist()
        self.cells[self._checked(seq)] = []
        if self.used() + len(tokens) > self.n_ctx or len(tokens) > self.n_ctx_seq:
            return False
        self._store(seq, tokens)
        self.n_loads += 1
        return True

    def _store(self, seq: int, tokens: list[int]) -> None:
        for token in tokens:
            cell = next(self._next)
            self.tokens[cell] = token
            self.cells[seq].append(cell)

    # -- computing ----------------------------------------------------------------------------

    def decode(self, batch: Any) -> int:
        """Check a batch as llama.cpp would and as we want it; compute it or return 1."""
        n = batch.n_tokens
        assert 0 < n <= self.n_batch, f"{n} rows"
        token, position = _view(batch.token, n), _view(batch.pos, n)
        seqs = [int(batch.seq_id[row][0]) for row in range(n)]
        outputs = [bool(batch.logits[row]) for row in range(n)]
        assert seqs == sorted(seqs), "rows do not ascend by sequence"
        assert sum(outputs) <= self.n_outputs_max, "too many outputs"
        assert all(0 <= t < self.n_vocab for t in token)
        expected = {seq: self.seq_length(seq) for seq in set(seqs)}
        for seq, at in zip(seqs, position, strict=True):
            assert at == expected[seq], f"position {at} of sequence {seq}, not {expected[seq]}"
            expected[seq] += 1
        if self._full(n, expected):
            self.n_full += 1
            return 1
        rows = []
        for seq, one, wanted in zip(seqs, token, outputs, strict=True):
            self._store(seq, [int(one)])
            if wanted:
                rows.append(LOGITS[state_after(self.held(seq), self._memory)])
        self._output_rows = [row for row in range(n) if outputs[row]]
        self._logits = np.array(rows, np.float32).reshape(-1, self.n_vocab)
        self.computed = [(s, seqs.count(s)) for s in dict.fromkeys(seqs)]
        self.n_rows += n
        self.pending.clear()
        return 0

    def _full(self, n_rows: int, lengths: dict[int, int]) -> bool:
        if not self.unified:
            return any(length > self.n_ctx_seq for length in lengths.values())
        return self.used() + n_rows > self.n_ctx

    def logits(self, n_rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        assert n_rows == len(self._logits), f"{n_rows} rows of logits of {len(self._logits)}"
        return self._logits

    def sample(self, chain: Chain, row: int) -> int:
        """Draw as llama_sampler_sample does, which accepts the token too."""
        logits = self._logits[self._output_rows.index(row)]
        table = self._candidates.table
        table["id"], table["logit"] = range(self.n_vocab), logits
        token = chain.draw(self._candidates, self.n_vocab, falling=False)
        assert token is not None
        chain.accept(token)
        return token


def _view(pointer: Any, n: int) -> list[int]:
    return np.ctypeslib.as_array(pointer, (n,)).tolist()  # type: ignore[no-any-return]
