"""The journal of a fetch: what was written is read again, whatever else lies there."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import BusyError, IoFailedError
from edgekit.fetch_journal import Mark, done_line, head_line, mark_line, read_journal
from edgekit.fetch_retry import (
    ATTEMPTS,
    LONGEST_ASKED_S,
    LONGEST_WAIT_S,
    Patience,
    TryAgainError,
    parse_retry_after,
)

DIGEST = "ab" * 32
SIZE, CHUNK = 1000, 256
HEAD = head_line(SIZE, CHUNK, '"etag"')
MARKS = st.integers(0, 3).flatmap(
    lambda i: st.builds(
        Mark,
        start=st.just(i * CHUNK),
        end=st.integers(i * CHUNK + 1, min((i + 1) * CHUNK, SIZE)),
        sha256=st.just(DIGEST),
        whole=st.booleans(),
    )
)


@given(st.lists(MARKS), st.booleans())
def test_what_was_written_is_read(marks: list[Mark], done: bool) -> None:
    data = HEAD + b"".join(map(mark_line, marks)) + (done_line(DIGEST) if done else b"")
    found = read_journal(data)
    assert found is not None
    assert (found.size, found.chunk, found.identity) == (SIZE, CHUNK, '"etag"')
    assert found.marks == {mark.start: mark for mark in marks}
    assert found.done == (DIGEST if done else None)
    assert found.valid_bytes == len(data)


@given(st.lists(MARKS, min_size=1), st.data())
def test_a_torn_end_costs_only_itself(marks: list[Mark], data: st.DataObject) -> None:
    whole = HEAD + b"".join(map(mark_line, marks))
    cut = data.draw(st.integers(len(HEAD), len(whole)))
    found = read_journal(whole[:cut])
    assert found is not None
    lines = whole[:cut].count(b"\n") - 1
    assert found.marks == {mark.start: mark for mark in marks[:lines]}
    assert whole[: found.valid_bytes].endswith(b"\n")


@given(st.binary(max_size=200), st.lists(MARKS, max_size=3))
def test_strange_bytes_end_the_journal(strange: bytes, marks: list[Mark]) -> None:
    before = HEAD + b"".join(map(mark_line, marks))
    found = read_journal(before + strange + b"\n" + mark_line(Mark(0, 7, "cd" * 32, False)))
    assert found is not None
    for start, mark in found.marks.items():
        assert mark in marks or start == 0


@given(st.binary(max_size=300))
def test_no_journal_is_none(data: bytes) -> None:
    found = read_journal(data)
    assert found is None or found.chunk > 0


@pytest.mark.parametrize(
    "change",
    [
        {"start": 1},
        {"start": -256},
        {"end": 0},
        {"end": 257},
        {"end": 1e3},
        {"end": True},
        {"sha256": "../../x"},
        {"sha256": None},
        {"whole": 1},
        {"more": 1},
    ],
)
def test_a_mark_that_cannot_be_is_not_believed(change: dict[str, object]) -> None:
    mark = {"start": 0, "end": 9, "sha256": DIGEST, "whole": False} | change
    found = read_journal(HEAD + json.dumps(mark).encode() + b"\n")
    assert found is not None
    assert found.marks == {}
    assert found.valid_bytes == len(HEAD)


def test_deep_nesting_is_no_journal() -> None:
    assert read_journal(b"[" * 100_000 + b"\n") is None


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        (format_datetime(NOW + timedelta(seconds=90)), 90.0),
        (format_datetime(NOW - timedelta(days=9)), 0.0),
        ("soon", None),
        ("-3", None),
        ("\u0663", None),
        ("", None),
        (None, None),
        ("9" * 400, 999_999_999.0),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, NOW) == seconds


def test_waits_grow_and_end() -> None:
    patience = Patience()
    waits = [patience.wait_s(TryAgainError("cut")) for _ in range(ATTEMPTS)]
    assert all(w <= LONGEST_WAIT_S * 1.25 for w in waits)
    assert waits[4] > waits[0] * 4
    with pytest.raises(IoFailedError) as caught:
        patience.wait_s(TryAgainError("cut"))
    assert caught.value.exit_code == 74


def test_progress_gives_patience_back() -> None:
    patience = Patience()
    for _ in range(3 * ATTEMPTS):
        patience.wait_s(TryAgainError("cut"))
        patience.progress()


def test_a_server_is_waited_for_as_long_as_it_says_within_reason() -> None:
    patience = Patience()
    assert patience.wait_s(TryAgainError("429", status=429, wait_s=42)) == 42
    with pytest.raises(BusyError) as caught:
        patience.wait_s(TryAgainError("429", status=429, wait_s=LONGEST_ASKED_S + 1))
    assert caught.value.exit_code == 75
    assert "301 s" in caught.value.message
