"""Deadlines and cancels, counted in steps: in the queue, in prefill, in decode, preempted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit_server.engine.request import deadline
from tests.support.engine import Driver, driver

LONG = list(range(8, 108)) * 2


class Watched:
    """A driver with a clock of its own, and a count of the rows that each step computed."""

    def __init__(self, engine: Driver) -> None:
        self.engine = engine
        self.now = 0.0
        self.rows: list[int] = []
        engine.loop._clock = lambda: self.now
        real = engine.context.decode

        def decode(batch: object) -> int:
            self.rows.append(batch.n_tokens)  # type: ignore[attr-defined]
            return real(batch)  # type: ignore[arg-type]

        engine.context.decode = decode  # type: ignore[method-assign]

    def step(self) -> bool:
        return self.engine.loop.step()


@pytest.fixture
def one(tiny_model: Path) -> Iterator[Watched]:
    """One sequence, 16 prompt rows a step."""
    with driver(tiny_model, n_seq_max=1, n_ubatch=16, n_batch=16) as engine:
        yield Watched(engine)


def test_the_shortest_limit_counts() -> None:
    assert deadline(10.0, None, None) is None
    assert deadline(10.0, 5.0, None) == 15.0
    assert deadline(10.0, 5.0, 3.0) == 13.0


# How a request ends early: (what the driver is told, the reason it must give).
Ending = Callable[[Watched, int], None]


def _cancel(watched: Watched, request: int) -> None:
    watched.engine.loop.cancel(request)


def _let_time_pass(watched: Watched, request: int) -> None:
    watched.now = 10.0


@pytest.fixture(params=[(_cancel, "cancelled"), (_let_time_pass, "timeout")], ids=lambda p: p[1])
def ending(request: pytest.FixtureRequest) -> tuple[Ending, str]:
    chosen: tuple[Ending, str] = request.param
    return chosen


def test_in_prefill_before_the_next_step(one: Watched, ending: tuple[Ending, str]) -> None:
    end, reason = ending
    request = one.engine.submit(LONG, 5, deadline=10.0)
    one.step()
    one.step()
    assert one.rows == [16, 16]
    end(one, request)
    assert one.step() is False
    assert one.rows == [16, 16]  # not one row more
    assert (one.engine.finish(request), one.engine.tokens(request)) == (reason, [])


def test_in_decode_before_the_next_step(one: Watched, ending: tuple[Ending, str]) -> None:
    end, reason = ending
    request = one.engine.submit([9, 10], 50, deadline=10.0)
    for _ in range(4):
        one.step()
    end(one, request)
    assert one.step() is False
    assert one.rows == [2, 1, 1, 1]
    assert one.engine.finish(request) == reason
    assert len(one.engine.tokens(request)) == 4


def test_in_the_queue_without_a_row(one: Watched, ending: tuple[Ending, str]) -> None:
    end, reason = ending
    running = one.engine.submit([9, 10], 50)
    queued = one.engine.submit([11, 12], 50, deadline=10.0)
    one.step()
    end(one, queued)
    one.step()
    assert one.engine.finish(queued) == reason
    assert one.rows == [2, 1]  # the running one's only
    one.engine.run()
    assert one.engine.finish(running) == "length"


def test_before_anything_at_all(one: Watched, ending: tuple[Ending, str]) -> None:
    end, reason = ending
    request = one.engine.submit(LONG, 5, deadline=10.0)
    end(one, request)
    assert one.step() is False
    assert (one.engine.finish(request), one.rows) == (reason, [])


def test_while_preempted(tiny_model: Path, ending: tuple[Ending, str]) -> None:
    end, reason = ending
    with driver(tiny_model, n_ctx=256, n_batch=64) as engine:
        watched = Watched(engine)
        engine.loop.admission.fits = lambda *_: True  # type: ignore[method-assign]
        ids = [engine.submit([20 + i, 30, 40], 120, deadline=10.0 if i else None) for i in range(4)]
        while not engine.loop.admission.n_preempted:
            watched.step()
        (preempted,) = engine.loop.admission.waiting
        end(watched, preempted.id)
        watched.step()
        assert engine.finish(preempted.id) == reason
        assert 0 < len(engine.tokens(preempted.id)) < 120
        engine.run()
        assert engine.finish(ids[0]) == "length"
        assert sum(o.finish is not None for o in engine.outputs[preempted.id]) == 1


def test_what_it_computed_serves_the_next_one(one: Watched, ending: tuple[Ending, str]) -> None:
    end, _ = ending
    request = one.engine.submit(LONG, 5, deadline=10.0)
    one.step()
    one.step()
    end(one, request)
    one.step()
    again = one.engine.submit(LONG, 5)
    one.engine.run()
    assert one.engine.outputs[again][0].n_cached == 32
    assert one.engine.tokens(again) == one.engine.alone(LONG, 5)


def test_others_do_not_notice(tiny_model: Path) -> None:
    with driver(tiny_model) as engine:
        watched = Watched(engine)
        alone = engine.alone([9, 10], 20)
        late = [engine.submit([30 + i, 31], 100, deadline=float(i)) for i in range(1, 4)]
        other = engine.submit([9, 10], 20, cache=False)
        while watched.step():
            watched.now += 0.25
        assert [engine.finish(i) for i in late] == ["timeout"] * 3
        assert [len(engine.tokens(i)) for i in late] == [4, 8, 12]
        assert engine.tokens(other) == alone
