"""What the intake thread must not be held up by, and the deadlines it sets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit_server.engine import wire
from edgekit_server.engine.lane import MOST_BYTES, MOST_JOBS, Lane
from edgekit_server.engine.wire import Generate
from tests.support.child import GREEDY, Child, child, settings

BIG = "def f(x):\n    return x + 1\n" * (32 * 1024 * 1024 // 27)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Child]:
    with child(settings(tiny_model)) as made:
        made.next()
        yield made


def test_32_mebibytes_to_count_delay_nobody(tiny: Child) -> None:
    tiny.send(wire.Tokenize(1, [(BIG, False)]))
    began = time.monotonic()
    tiny.send(Generate(2, [9, 10], None, ignore_eos=True, sampling=GREEDY))
    tiny.until(lambda m: isinstance(m, wire.Step))
    tiny.send(wire.Cancel(2))
    seen = tiny.until(lambda m: any(o.finish for o in getattr(m, "outputs", [])))
    assert time.monotonic() - began < 3.0  # the text alone takes many times that
    assert not any(isinstance(m, wire.Tokens) for m in seen)
    tiny.send(wire.Cancel(1))
    tiny.send(wire.Tokenize(3, [("ab", False)]))
    reply = tiny.next()
    assert isinstance(reply, wire.Tokens)
    assert (reply.id, reply.tokens) == (3, reply.tokens[:2])


def test_no_more_waits_than_fits(tiny: Child) -> None:
    for number in range(MOST_JOBS + 4):
        tiny.send(wire.Tokenize(100 + number, [("x y " * 500_000, False)]))
    seen = tiny.next()
    assert isinstance(seen, wire.Rejected)
    assert seen.code == "queue_full"
    for number in range(MOST_JOBS + 4):
        tiny.send(wire.Cancel(100 + number))
    assert tiny.answer_after_rest(Generate(5, [9], 1, sampling=GREEDY))[-1].finish == "length"


def test_the_end_does_not_wait_for_a_count(tiny_model: Path) -> None:
    with child(settings(tiny_model)) as one:
        one.next()
        one.send(wire.Tokenize(1, [(BIG, False)]))
        time.sleep(0.3)
        one.send(wire.Stop())
        assert one.ends(5) == 0


def test_a_prompt_that_is_far_too_long_is_not_read_to_its_end(tiny_model: Path) -> None:
    with child(settings(tiny_model)) as one:
        one.next()
        # Just below what its bytes alone would refuse: 1024 tokens of at most 8 bytes.
        one.send(Generate(1, [("ab" * 4000, False)], 1))
        rejected = one.next()
        assert isinstance(rejected, wire.Rejected)
        assert rejected.code == "context_length_exceeded"
        assert rejected.n_prompt > 1024


def test_deadline_of_the_engine_and_of_a_request(tiny_model: Path) -> None:
    with child(settings(tiny_model, n_ctx=2048, deadline_s=0.1)) as one:
        one.next()
        endless = Generate(1, [9, 10], None, ignore_eos=True, sampling=GREEDY)
        assert one.answer(endless)[-1].finish == "timeout"
        hasty = Generate(2, [9, 11], None, ignore_eos=True, sampling=GREEDY, deadline_s=0.0)
        assert one.answer(hasty)[-1].finish == "timeout"
        patient = Generate(3, [9, 12], None, ignore_eos=True, sampling=GREEDY, deadline_s=100.0)
        assert one.answer(patient)[-1].finish == "timeout"


def test_a_lane_keeps_order_and_bounds() -> None:
    lane, done = Lane("test"), []
    gate = threading.Event()
    assert lane.offer(1, MOST_BYTES * 2, lambda dropped: done.append(gate.wait(5)))
    assert not lane.offer(2, 1, lambda dropped: None)
    gate.set()
    while not lane.offer(2, MOST_BYTES, lambda dropped: done.append(dropped())):
        time.sleep(0.001)
    lane.close()
    assert done[0] is True
    assert len(done) <= 2


def test_a_dropped_job_is_not_begun() -> None:
    lane, done = Lane("test"), []
    gate, begun = threading.Event(), threading.Event()

    def first(dropped: object) -> None:
        begun.set()
        gate.wait(5)

    lane.offer(1, 0, first)
    begun.wait(5)
    lane.offer(2, 0, lambda dropped: done.append(2))
    lane.offer(3, 0, lambda dropped: done.append(3))
    lane.drop(2)
    lane.drop(99)
    gate.set()
    while 3 not in done:
        time.sleep(0.001)
    lane.close()
    assert done == [3]
