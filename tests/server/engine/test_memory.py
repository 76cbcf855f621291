"""The table of sequences, against a model of the memory that counts cells one by one."""

from __future__ import annotations

import itertools
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_server.engine.cells import Blob
from edgekit_server.engine.hostcache import HostCache
from edgekit_server.engine.memory import SeqTable
from edgekit_server.engine.prefix import common_prefix


class CellMemory:
    """What unified memory does: a cell may belong to several sequences."""

    can_shift = True

    def __init__(self, n: int) -> None:
        self.cells: list[list[int]] = [[] for _ in range(n)]
        self.pending: set[int] = set()
        self.next = itertools.count()

    def seq_rm(self, seq: int, start: int = 0, end: int = -1) -> bool:
        del self.cells[seq][start : None if end < 0 else end]
        return True

    def seq_add(self, seq: int, start: int, delta: int) -> None:
        moved = self.cells[seq][start + delta :]
        others = [cells for i, cells in enumerate(self.cells) if i != seq]
        assert not any(set(moved) & set(cells) for cells in others), "moved another's cells"

    def seq_start(self, seq: int) -> int:
        return 0 if self.cells[seq] else -1

    def state_size(self, seq: int, *, partial: bool = False) -> int:
        return 8 * len(self.cells[seq])

    def save(self, seq: int, *, partial: bool = False) -> Blob | None:
        assert seq not in self.pending
        return np.zeros(self.state_size(seq), np.uint8)

    def load(self, seq: int, blob: Blob, *, partial: bool = False) -> bool:
        assert not self.cells[seq], "restored onto a sequence that holds something"
        self.decode(seq, len(blob) // 8)
        return True

    def seq_cp(self, source: int, target: int, end: int) -> None:
        assert not self.cells[target], "copied onto a sequence that holds something"
        assert len(self.cells[source]) >= end
        self.cells[target] = self.cells[source][:end]

    def decode(self, seq: int, n: int) -> None:
        self.cells[seq] += [next(self.next) for _ in range(n)]

    def used(self, seqs: list[int] | None = None) -> int:
        chosen = self.cells if seqs is None else [self.cells[s] for s in seqs]
        return len({cell for cells in chosen for cell in cells})


def put(table: SeqTable, memory: CellMemory, owner: int, prompt: list[int]) -> tuple[int, int]:
    tokens = array("i", prompt)
    seq, cached = table.acquire(owner, tokens)
    table.append(seq, tokens[cached:])
    memory.decode(seq, len(tokens) - cached)
    return seq, cached


def make(n: int = 3, reuse: bool = True) -> tuple[SeqTable, CellMemory]:
    memory = CellMemory(n)
    return SeqTable(n, 1000, memory, reuse=reuse), memory


def test_a_conversation_goes_on_in_place() -> None:
    table, memory = make()
    seq, cached = put(table, memory, 1, [1, 2, 3, 4])
    assert (seq, cached) == (0, 0)
    table.release(seq, keep=True)
    assert put(table, memory, 2, [1, 2, 3, 4, 5, 6]) == (0, 4)
    assert table.used_cells() == memory.used() == 6


def test_one_prompt_token_is_always_computed() -> None:
    table, memory = make()
    seq, _ = put(table, memory, 1, [1, 2, 3, 4])
    table.release(seq, keep=True)
    assert put(table, memory, 2, [1, 2, 3, 4])[1] == 3
    assert memory.used() == 4


def test_a_short_common_prefix_is_copied_not_taken() -> None:
    table, memory = make()
    seq, _ = put(table, memory, 1, [1, 2, *range(10, 50)])
    table.release(seq, keep=True)
    assert put(table, memory, 2, [1, 2, 99, 98]) == (1, 2)
    assert len(table.residents[0].tokens) == 42
    assert table.used_cells() == memory.used() == 44


def test_a_running_sequence_shares_its_prefix() -> None:
    table, memory = make()
    put(table, memory, 1, [1, 2, 3, 4])
    assert table.shared_with_running(array("i", [1, 2, 3, 9])) == 3
    assert put(table, memory, 2, [1, 2, 3, 9]) == (1, 3)
    assert table.busy_cells() == memory.used() == 5


def test_the_oldest_idle_one_goes_first() -> None:
    table, memory = make(2)
    for owner, prompt in enumerate(([1, 2], [5, 6])):
        seq, _ = put(table, memory, owner, prompt)
        table.release(seq, keep=True)
    assert put(table, memory, 9, [7, 8]) == (0, 0)
    assert memory.cells[1]
    table.release(0, keep=False)
    assert table.drop_oldest_idle()
    assert memory.used() == 0
    assert not table.drop_oldest_idle()


def test_no_id_left() -> None:
    table, memory = make(1)
    put(table, memory, 1, [1])
    assert not table.has_room()
    with pytest.raises(LookupError):
        table.acquire(2, array("i", [1]))


def test_without_reuse_nothing_stays() -> None:
    table, memory = make(reuse=False)
    seq, _ = put(table, memory, 1, [1, 2, 3])
    table.release(seq, keep=True)
    assert memory.used() == 0
    assert put(table, memory, 2, [1, 2, 3])[1] == 0


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    expected = len(list(itertools.takewhile(lambda p: p[0] == p[1], zip(a, b, strict=False))))
    assert common_prefix(array("i", a), array("i", b)) == expected


actions = st.lists(
    st.one_of(
        st.tuples(st.just("new"), st.lists(st.integers(0, 1), min_size=1, max_size=12)),
        st.tuples(st.just("grow"), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
        st.tuples(st.just("end"), st.booleans()),
        st.tuples(st.just("evict"), st.none()),
    ),
    max_size=40,
)


@given(actions, st.randoms())
@settings(max_examples=150, deadline=None)
def test_cells_are_counted_exactly(history: list[tuple[str, object]], random: object) -> None:
    table, memory = make(4)
    running: list[int] = []
    for owner, (what, value) in enumerate(history):
        pick = running[random.randrange(len(running))] if running else None  # type: ignore[attr-defined]
        if what == "new" and table.has_room():
            assert isinstance(value, list)
            seq, _ = put(table, memory, owner, value)
            running.append(seq)
            assert table.residents[seq].tokens.tolist() == value
        elif what == "grow" and pick is not None:
            assert isinstance(value, list)
            table.append(pick, array("i", value))
            memory.decode(pick, len(value))
        elif what == "end" and pick is not None:
            table.release(pick, keep=bool(value))
            running.remove(pick)
        elif what == "evict":
            table.drop_oldest_idle()
        assert table.used_cells() == memory.used()
        assert table.busy_cells() == memory.used(running)
        assert table.used_cells() <= table.most_used_cells()
        assert [len(r.tokens) for r in table.residents] == [len(c) for c in memory.cells]


moves = st.lists(
    st.one_of(
        st.tuples(st.just("new"), st.lists(st.integers(0, 1), min_size=4, max_size=9)),
        st.tuples(st.just("grow"), st.integers(1, 40)),
        st.tuples(st.just("shift"), st.integers(1, 30)),
        st.tuples(st.just("end"), st.booleans()),
        st.tuples(st.just("preempt"), st.booleans()),
        st.tuples(st.just("evict"), st.none()),
        st.tuples(st.just("tidy"), st.none()),
    ),
    max_size=40,
)


@given(moves, st.sampled_from([0, 300, 5000]), st.randoms())
@settings(max_examples=150, deadline=None)
def test_no_cell_is_lost_on_the_way_out_and_back(
    history: list[tuple[str, object]], budget: int, random: object
) -> None:
    """The store, preemption and shifts: what the table says is what the memory holds."""
    memory, store = CellMemory(3), HostCache(budget)
    table = SeqTable(3, 400, memory, reuse=True, store=store)
    running: list[int] = []
    for owner, (what, value) in enumerate(history):
        pick = running[random.randrange(len(running))] if running else None  # type: ignore[attr-defined]
        if what == "new" and table.has_room():
            assert isinstance(value, list)
            prompt = [token for token in value for _ in range(8)]
            if table.busy_cells() + len(prompt) > 300:
                continue
            seq, cached = put(table, memory, owner, prompt)
            assert cached < len(prompt)
            assert table.residents[seq].tokens.tolist() == prompt
            running.append(seq)
        elif what == "grow" and pick is not None:
            assert isinstance(value, int)
            table.append(pick, array("i", [7] * value))
            memory.decode(pick, value)
        elif what == "shift" and pick is not None:
            assert isinstance(value, int)
            length = len(table.residents[pick].tokens)
            if length > value + 5:
                table.shift(pick, 5, value)
                assert len(table.residents[pick].tokens) in (length - value, 5)
        elif what == "end" and pick is not None:
            table.release(pick, keep=bool(value))
            running.remove(pick)
        elif what == "preempt" and pick is not None:
            table.preempt(pick, keep=bool(value))
            running.remove(pick)
            assert not memory.cells[pick]
        elif what == "evict":
            table.drop_oldest_idle()
        elif what == "tidy":
            for resident in table.idle():
                table.save(resident, hurried=False)
        assert store.n_bytes <= budget
        assert table.used_cells() == memory.used()
        assert table.busy_cells() == memory.used(running)
        assert [len(r.tokens) for r in table.residents] == [len(c) for c in memory.cells]
        assert [r.owner is not None for r in table.residents] == [
            r.seq in running for r in table.residents
        ]


def test_what_was_moved_is_no_beginning_for_others() -> None:
    table, memory = make()
    seq, _ = put(table, memory, 1, list(range(100)))
    table.shift(seq, 10, 40)
    moved = table.residents[seq].tokens
    assert moved.tolist() == [*range(10), *range(50, 100)]
    assert table.available(moved) == 10
    table.release(seq, keep=True)
    assert table.residents[seq].tokens.tolist() == list(range(10))
    assert memory.used() == 10
