"""Which outputs wait for each other, and that nothing is lost on the way."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.engine.outlet import LOT, Outlet
from edgekit_server.engine.wire import Output, Step, TopToken


def output(request_id: int, token: int, finish: str | None = None) -> Output:
    top = TopToken(token, b"x", -1.0)
    return Output(
        request_id, [token], [(b"x", False)], logprobs=[top], top_logprobs=[[top]], finish=finish
    )


def test_a_stream_gets_each_token_at_once() -> None:
    sent: list[Step] = []
    outlet = Outlet(sent.append)
    outlet(Step([output(1, 5)]))
    outlet(Step([output(1, 6)]))
    assert [out.tokens for step in sent for out in step.outputs] == [[5], [6]]


def test_a_whole_answer_comes_in_lots() -> None:
    sent: list[Step] = []
    outlet = Outlet(sent.append)
    outlet.gather(1)
    n = 2 * LOT + 3
    for token in range(n):
        outlet(Step([output(1, token, "length" if token == n - 1 else None)]))
    lots = [out for step in sent for out in step.outputs]
    assert [len(out.tokens) for out in lots] == [1, LOT, LOT, 2]
    assert [out.finish for out in lots] == [None, None, None, "length"]


def test_an_end_without_a_token_brings_what_waited() -> None:
    sent: list[Step] = []
    outlet = Outlet(sent.append)
    outlet.gather(1)
    for token in range(3):
        outlet(Step([output(1, token)]))
    outlet(Step([Output(1, [], [], finish="error", error="broken")]))
    last = sent[-1].outputs[0]
    assert (last.tokens, last.finish, last.error) == ([1, 2], "error", "broken")
    outlet(Step([output(1, 9)]))  # the id is forgotten
    assert sent[-1].outputs[0].tokens == [9]


@given(
    st.lists(st.lists(st.integers(0, 3), unique=True, min_size=1), max_size=80),
    st.sets(st.integers(0, 3)),
)
def test_nothing_is_lost_or_turned_round(steps: list[list[int]], whole: set[int]) -> None:
    sent: list[Step] = []
    outlet = Outlet(sent.append)
    for request_id in whole:
        outlet.gather(request_id)
    given: dict[int, list[int]] = {i: [] for i in range(4)}
    for number, ids in enumerate(steps):
        outlet(Step([output(i, number) for i in ids]))
        for i in ids:
            given[i].append(number)
    outlet(Step([output(i, -1, "stop") for i in range(4)]))
    flat = sorted(
        ((out.id, at, out) for at, step in enumerate(sent) for out in step.outputs),
        key=lambda item: item[:2],
    )
    for request_id, group in groupby(flat, key=lambda item: item[0]):
        outs = [out for _, _, out in group]
        tokens = [token for out in outs for token in out.tokens]
        assert tokens == [*given[request_id], -1]
        assert [top.token for out in outs for top in out.logprobs] == tokens
        assert [out.finish for out in outs] == [None] * (len(outs) - 1) + ["stop"]
