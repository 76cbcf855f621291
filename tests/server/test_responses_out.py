"""Events of an answer become typed events that keep the contract, however they are cut."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.api.choice import Usage
from edgekit_server.api.responses_head import refused
from edgekit_server.api.responses_out import Writer, written_out
from edgekit_server.api.responses_tools import Toolbox, toolbox_of
from edgekit_server.chat.parser import Event, ReasoningText, Text, ToolCall, merge
from edgekit_server.engine.wire import TopToken
from edgekit_server.errors import EngineDiedError
from tests.support.responses_contract import RESPONSE_KEYS, check_stream, read

USAGE = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=3, reasoning_tokens=2)
CALL = ToolCall(0, "abcdefghi", "weather", '{"city": "Bern"}')
HEAD = {
    **dict.fromkeys(RESPONSE_KEYS),
    "id": "resp_" + "0" * 32,
    "object": "response",
    "created_at": 1,
    "model": "tiny",
    "output": [],
}


def _writer(box: Toolbox | None = None) -> Writer:
    numbers = itertools.count()
    prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
    return Writer(HEAD, box or Toolbox(), make_id=lambda kind: f"{prefix[kind]}_{next(numbers)}")


def _stream(batches: Sequence[Sequence[Event]], *, cut: bool = False) -> list[Any]:
    writer = _writer()
    events = writer.begin()
    for batch in batches:
        events += writer.take(batch)
    return events + writer.finish(USAGE, cut=cut)


def _types(events: Sequence[Any]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_the_order_of_a_whole_turn() -> None:
    events = _stream([[ReasoningText("hm")], [Text("Bo"), Text("th.")], [CALL]])
    assert _types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    final = check_stream(events)
    assert final is not None
    assert [item["type"] for item in final["output"]] == ["reasoning", "message", "function_call"]
    assert final["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 7},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 15,
    }


BLANKS: list[tuple[str, list[list[Event]], list[tuple[str, str]]]] = [
    ("before text", [[Text("\n")], [Text("a")]], [("message", "\na")]),
    ("before a call", [[Text("\n\n")], [CALL]], [("function_call", CALL.arguments)]),
    (
        "between calls",
        [[CALL], [Text("\n")], [CALL]],
        [("function_call", CALL.arguments)] * 2,
    ),
    ("after a call", [[CALL], [Text("\n")]], [("function_call", CALL.arguments)]),
    ("no reasoning", [[ReasoningText("\n\n")], [Text("a")]], [("message", "a")]),
    ("blank answer", [[ReasoningText("hm"), Text(" ")]], [("reasoning", "hm"), ("message", " ")]),
    ("nothing", [], [("message", "")]),
    ("within text", [[Text("a")], [Text("\n")], [Text("b")]], [("message", "a\nb")]),
    ("end of text", [[Text("a")], [Text("\n")], [CALL]],
     [("message", "a\n"), ("function_call", CALL.arguments)]),
]  # fmt: skip


def _said(final: Any) -> list[tuple[str, str]]:
    return [
        (item["type"], item["arguments"] if "arguments" in item else item["content"][0]["text"])
        for item in final["output"]
    ]


@pytest.mark.parametrize(("batches", "said"), [b[1:] for b in BLANKS], ids=[b[0] for b in BLANKS])
def test_white_space_makes_no_item_beside_calls(
    batches: list[list[Event]], said: list[tuple[str, str]]
) -> None:
    assert _said(check_stream(_stream(batches))) == said


EVENTS = st.one_of(
    st.builds(Text, st.text(" \nab", min_size=1, max_size=4)),
    st.builds(ReasoningText, st.text(" \nab", min_size=1, max_size=4)),
    st.just(CALL),
)


@given(st.lists(EVENTS, max_size=12), st.lists(st.integers(0, 12)), st.booleans())
def test_any_events_in_any_batches_keep_the_contract_and_agree(
    events: list[Event], cuts: list[int], cut: bool
) -> None:
    marks = sorted({0, len(events), *(c for c in cuts if c < len(events))})
    batches = [events[a:b] for a, b in itertools.pairwise(marks)]
    streamed = check_stream(_stream(batches, cut=cut))
    assert streamed == check_stream(_stream([merge(events)], cut=cut))
    assert streamed is not None
    assert streamed["status"] == ("incomplete" if cut else "completed")


@given(st.lists(EVENTS, max_size=8))
def test_a_failure_keeps_what_was_said(events: list[Event]) -> None:
    writer = _writer()
    written = [*writer.begin(), *writer.take(events), writer.still()]
    written += writer.fail(EngineDiedError("it died"))
    final = check_stream(written)
    assert final is not None
    assert final["error"] == {"code": "engine_died", "message": "it died"}


def test_a_refusal_within_a_stream_keeps_the_contract() -> None:
    lines = written_out(refused("context_length_exceeded", "too long")).decode().split("\n")
    final = check_stream(read([": keep-alive", "", *lines]))
    assert final is not None
    assert final["error"] == {"code": "context_length_exceeded", "message": "too long"}


def test_a_cut_answer_says_why() -> None:
    final = check_stream(_stream([[Text("on and")]], cut=True))
    assert final is not None
    assert final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final["output"][-1]["status"] == "incomplete"


def test_a_call_comes_back_by_its_own_name() -> None:
    tools = [{"type": "namespace", "name": n, "tools": [{"type": "function", "name": "log"}]}
             for n in ("git", "svn")]  # fmt: skip
    writer = _writer(toolbox_of(tools))
    written = writer.begin() + writer.take([ToolCall(0, "abcdefghi", "svn__log", "{}")])
    final = check_stream(written + writer.finish(USAGE, cut=False))
    assert final is not None
    assert (final["output"][0]["name"], final["output"][0]["namespace"]) == ("log", "svn")


def test_logprobs_are_in_deltas_and_in_the_whole() -> None:
    writer = _writer()
    entries = [(TopToken(n, text, -0.5), [TopToken(n, text, -0.5)]) for n, text in
               enumerate([b"a", b"\xc3", b"."])]  # fmt: skip
    written = writer.begin()
    written += writer.take([Text("a")], entries[:1])
    written += writer.take([], entries[1:2])
    written += writer.take([Text("é.")], entries[2:])
    final = check_stream(written + writer.finish(USAGE, cut=False))
    assert final is not None
    logprobs = final["output"][0]["content"][0]["logprobs"]
    assert [entry["bytes"] for entry in logprobs] == [[97], [195], [46]]
    assert logprobs[0]["top_logprobs"] == [{"token": "a", "logprob": -0.5, "bytes": [97]}]


def _swap(a: int, b: int) -> Callable[[list[Any]], object]:
    def change(events: list[Any]) -> None:
        events[a], events[b] = events[b], events[a]
        for number, event in enumerate(events):
            event["sequence_number"] = number

    return change


def _set(at: int, *path: str | int, to: object) -> Callable[[list[Any]], object]:
    def change(events: list[Any]) -> None:
        place = events[at]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


def _drop(at: int) -> Callable[[list[Any]], object]:
    def change(events: list[Any]) -> None:
        del events[at]
        for number, event in enumerate(events):
            event["sequence_number"] = number

    return change


# 0 created, 1 in_progress, 2 added, 3 part, 4 delta, 5 done, 6 part done, 7 item done,
# 8 added, 9 arguments, 10 arguments done, 11 item done, 12 completed
VIOLATIONS: list[tuple[str, Callable[[list[Any]], object]]] = [
    ("must be here", _drop(0)),
    ("must be here", _drop(1)),
    ("no item is open", _drop(2)),
    ("output_text.delta after added", _drop(3)),
    ("not the sum", _drop(4)),
    ("part is done after part", _drop(5)),
    ("done after text done", _drop(6)),
    ("output_index", _drop(7)),
    ("no item is open", _drop(8)),
    ("not the sum", _drop(9)),
    ("done after added", _drop(10)),
    ("still open", _drop(11)),
    ("no last event", _drop(12)),
    ("after added", _swap(3, 4)),
    ("sequence_number", _set(5, "sequence_number", to=4)),
    ("keys", _set(4, "obfuscation", to="x")),
    ("item_id", _set(4, "item_id", to="msg_9")),
    ("output_index", _set(9, "output_index", to=0)),
    ("content_index", _set(4, "content_index", to=1)),
    ("empty delta", _set(4, "delta", to="")),
    ("its deltas", _set(6, "part", "text", to="other")),
    ("id changed", _set(7, "item", "id", to="msg_9")),
    ("not the part", _set(7, "item", "content", 0, "annotations", to=[1])),
    ("name changed", _set(10, "name", to="other")),
    ("added with", _set(8, "item", "arguments", to="{")),
    ("changed", _set(12, "response", "model", to="other")),
    ("not what the items were", _set(12, "response", "output", 0, "content", 0, "text", to="x")),
    ("not the sum", _set(12, "response", "usage", "total_tokens", to=16)),
    ("unknown event", _set(4, "type", to="response.text.delta")),
    ("without an error", _set(12, "response", "status", to="failed")),
    ("with items that are", _set(12, "response", "output", 0, "status", to="incomplete")),
    ("malformed", _set(12, "response", "usage", to=None)),
    ("follows", lambda events: events.append({**events[-1], "sequence_number": 13})),
]


@pytest.mark.parametrize(("word", "change"), VIOLATIONS)
def test_the_contract_finds_violations(word: str, change: Callable[[list[Any]], object]) -> None:
    events = _stream([[Text("Both.")], [CALL]])
    check_stream(events)
    broken: list[Any] = json.loads(json.dumps(copy.deepcopy(events)))
    change(broken)
    with pytest.raises(AssertionError) as caught:
        check_stream(broken)
    assert word in str(caught.value)


def test_a_stream_that_was_left_may_lack_its_end() -> None:
    events = _stream([[Text("Both.")], [CALL]])
    for n in range(len(events)):
        assert check_stream(events[:n], ended=False) is None
