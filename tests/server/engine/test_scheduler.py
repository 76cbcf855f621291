"""The scheduler's promises, for any state."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.engine.scheduler import Chunk, Work, budget, can_admit, plan


@st.composite
def states(draw: st.DrawFn) -> tuple[list[Work], int, int]:
    n = draw(st.integers(0, 24))
    n_batch = draw(st.integers(max(n, 2), 4096))
    n_ubatch = draw(st.integers(1, n_batch))
    seqs = draw(st.permutations(range(n)))
    works = []
    for key in range(n):
        decoding = draw(st.booleans())
        remaining = 1 if decoding else draw(st.integers(1, 200_000))
        waited = draw(st.floats(0, 1e7))
        works.append(Work(key, seqs[key], remaining, decoding, waited))
    return works, n_batch, n_ubatch


@given(states())
def test_promises(state: tuple[list[Work], int, int]) -> None:
    works, n_batch, n_ubatch = state
    chunks = plan(works, n_batch=n_batch, n_alone=n_batch, n_mixed=n_ubatch)
    by_key = {work.key: work for work in works}
    n_decoding = sum(work.decoding for work in works)
    total = sum(chunk.count for chunk in chunks)

    assert (
        total <= budget(n_decoding, n_batch=n_batch, n_alone=n_batch, n_mixed=n_ubatch) <= n_batch
    )
    assert [c.seq for c in chunks] == sorted({c.seq for c in chunks}), "ascending, once each"
    planned = {c.key for c in chunks}
    assert {w.key for w in works if w.decoding} <= planned, "every decode row is in"
    for chunk in chunks:
        work = by_key[chunk.key]
        assert 1 <= chunk.count <= work.remaining
        assert chunk.output == (chunk.count == work.remaining)
    prefills = [work for work in works if not work.decoding]
    if prefills and n_decoding < n_batch:
        assert any(not by_key[key].decoding for key in planned), "some prompt moves on"
    wanted = sum(work.remaining for work in works)
    full = min(wanted, budget(n_decoding, n_batch=n_batch, n_alone=n_batch, n_mixed=n_ubatch))
    assert total == full, "the budget is used whole"


@given(st.integers(2, 100_000), st.integers(1, 64))
def test_a_long_prompt_never_starves(length: int, n_ubatch: int) -> None:
    """A stream of short prompts, one per step of 50 ms, cannot keep a long one out."""
    long = Work(0, 0, length, False)
    for step in range(1000):
        works = [
            Work(0, 0, long.remaining, False, waited_s=step * 0.05),
            Work(step + 1, 1, n_ubatch, False),
        ]
        chunks = plan(works, n_batch=n_ubatch, n_alone=n_ubatch, n_mixed=n_ubatch)
        if any(chunk.key == 0 for chunk in chunks):
            return
    pytest.fail("starved")


def work(key: int, remaining: int, *, decoding: bool = False, waited: float = 0.0) -> Work:
    return Work(key, key, remaining, decoding, waited)


@pytest.mark.parametrize(
    ("works", "expected"),
    [
        ([], []),
        ([work(0, 500)], [Chunk(0, 0, 100, False)]),
        ([work(0, 60), work(1, 50)], [Chunk(0, 0, 50, False), Chunk(1, 1, 50, True)]),
        (
            [work(0, 1, decoding=True), work(1, 500)],
            [Chunk(0, 0, 1, True), Chunk(1, 1, 31, False)],
        ),
        (
            [work(0, 400, waited=4.0), work(1, 100)],
            [Chunk(0, 0, 100, False)],
        ),
        ([work(0, 1), work(1, 1, decoding=True)], [Chunk(0, 0, 1, True), Chunk(1, 1, 1, True)]),
    ],
)
def test_cases(works: list[Work], expected: list[Chunk]) -> None:
    assert plan(works, n_batch=100, n_alone=100, n_mixed=32) == expected


def test_many_decodes_still_leave_a_row_for_a_prompt() -> None:
    works = [*(work(i, 1, decoding=True) for i in range(40)), work(40, 900)]
    assert plan(works, n_batch=100, n_alone=100, n_mixed=32)[-1] == Chunk(40, 40, 1, False)


@pytest.mark.parametrize(("free", "ok"), [(99, False), (100, True)])
def test_admission(free: int, ok: bool) -> None:
    assert can_admit(free_cells=free, needed=60, reserved=40) is ok


@given(states(), st.data())
def test_drafts_take_only_what_is_left(
    state: tuple[list[Work], int, int], data: st.DataObject
) -> None:
    works, n_batch, n_ubatch = state
    guessing = [
        replace(w, n_drafts=data.draw(st.integers(0, 20))) if w.decoding else w for w in works
    ]
    chunks = plan(guessing, n_batch=n_batch, n_alone=n_batch, n_mixed=n_ubatch)
    n_decoding = sum(w.decoding for w in works)
    n_prompts = len(works) - n_decoding
    most = budget(n_decoding, n_batch=n_batch, n_alone=n_batch, n_mixed=n_ubatch)
    assert sum(c.n_rows for c in chunks) <= most
    assert {w.key for w in works if w.decoding} <= {c.key for c in chunks}
    assert sum(not c.decoding for c in chunks) >= min(1, n_prompts, most - n_decoding)
    by_key = {w.key: w for w in guessing}
    for chunk in chunks:
        assert 0 <= chunk.n_drafts <= by_key[chunk.key].n_drafts
        assert chunk.output or not chunk.n_drafts


def test_forced_tokens_are_decode_rows() -> None:
    """A few known tokens after a drawn one go first, with drafts behind them."""
    forced = Work(0, 1, 5, True, n_drafts=3)
    chunks = plan([forced, Work(1, 0, 500, False)], n_batch=100, n_alone=100, n_mixed=32)
    assert chunks == [Chunk(1, 0, 24, False), Chunk(0, 1, 5, True, n_drafts=3)]
