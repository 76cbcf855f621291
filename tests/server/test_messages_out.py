"""An answer's events in Anthropic's words, however they were cut; and the validator itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.api.choice import Usage
from edgekit_server.api.messages_out import Head, Writer, stop_data, usage_data, whole
from edgekit_server.api.messages_thoughts import signature_of, thought_in
from edgekit_server.chat.parser import Event, ReasoningText, Text, ToolCall, merge
from tests.support.anthropic_contract import check_error, check_message, check_stream

HEAD = Head("msg_1", "tiny")
CALL = ToolCall(0, "abcDEF123", "f", '{"x": 1}')
ANSWER: list[Event] = [ReasoningText("h"), ReasoningText("m"), Text("Yes"), Text("."), CALL]


def _stream(events: list[Event], *, head: Head = HEAD, chunk: int = 1) -> list[dict[str, Any]]:
    finish = "tool_calls" if any(isinstance(e, ToolCall) for e in events) else "stop"
    writer = Writer(head)
    found: list[Any] = [writer.start(7)]
    for at in range(0, len(events), chunk):
        found += writer.events(events[at : at + chunk])
    return found + writer.end(stop_data(finish, None), Usage(7, 5, 3))


def test_order_and_shape() -> None:
    found = [(e["type"], e.get("index"), e.get("delta")) for e in _stream(ANSWER)]
    delta, start, stop = "content_block_delta", "content_block_start", "content_block_stop"
    assert found == [
        ("message_start", None, None),
        (start, 0, None),
        (delta, 0, {"type": "thinking_delta", "thinking": "h"}),
        (delta, 0, {"type": "thinking_delta", "thinking": "m"}),
        (delta, 0, {"type": "signature_delta", "signature": "edgekit"}),
        (stop, 0, None),
        (start, 1, None),
        (delta, 1, {"type": "text_delta", "text": "Yes"}),
        (delta, 1, {"type": "text_delta", "text": "."}),
        (stop, 1, None),
        (start, 2, None),
        (delta, 2, {"type": "input_json_delta", "partial_json": '{"x": 1}'}),
        (stop, 2, None),
        ("message_delta", None, {"stop_reason": "tool_use", "stop_sequence": None}),
        ("message_stop", None, None),
    ]


def test_hidden_thoughts_keep_their_block() -> None:
    head = Head("msg_1", "tiny", hide_thinking=True)
    message = check_stream(_stream(ANSWER, head=head), input_tokens=7)
    thought = message["content"][0]
    assert (thought["thinking"], thought_in(thought["signature"])) == ("", "hm")
    shown = whole(head, merge(ANSWER), stop_data("tool_calls", None), Usage(7, 5, 3))
    assert shown["content"] == message["content"]


@pytest.mark.parametrize(
    ("finish", "stopped_by", "reason", "sequence"),
    [
        ("stop", None, "end_turn", None),
        ("stop", "END", "stop_sequence", "END"),
        ("length", None, "max_tokens", None),
        ("tool_calls", None, "tool_use", None),
        ("tool_calls", "END", "tool_use", None),
    ],
)
def test_stop_reason(
    finish: str, stopped_by: str | None, reason: str, sequence: str | None
) -> None:
    assert stop_data(finish, stopped_by) == {"stop_reason": reason, "stop_sequence": sequence}


def test_usage_counts_each_token_of_the_prompt_once() -> None:
    assert usage_data(Usage(10, 4, 3)) == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": 4,
    }
    details = usage_data(Usage(10, 4, 3, reasoning_tokens=2))["output_tokens_details"]
    assert details == {"thinking_tokens": 2}


@given(st.text(), st.booleans())
def test_a_signature_gives_back_what_the_client_did_not_see(thought: str, hidden: bool) -> None:
    assert thought_in(signature_of(thought, hidden=hidden)) == (thought if hidden else "")


@pytest.mark.parametrize(
    "foreign", ["", "edgekit", "edgekit:%", "edgekit:AAA", "edgekit:/w==", "Eq"]
)
def test_foreign_signatures_hold_nothing(foreign: str) -> None:
    assert thought_in(foreign) == ""


texts = st.text(min_size=1, max_size=4)
calls = st.builds(
    lambda number, value: ToolCall(0, f"call{number:05}", "f", f'{{"x": {value}}}'),
    st.integers(0, 99999),
    st.integers(-5, 5),
)
answers = st.lists(
    texts.map(Text) | texts.map(ReasoningText) | calls,
    max_size=8,
    unique_by=lambda event: event.id if isinstance(event, ToolCall) else object(),
)


@given(answers, st.integers(1, 4), st.booleans())
def test_a_stream_says_what_the_whole_answer_says(
    events: list[Event], chunk: int, hidden: bool
) -> None:
    head = Head("msg_1", "tiny", hidden)
    message = check_stream(_stream(events, head=head, chunk=chunk), tools={"f"}, input_tokens=7)
    finish = "tool_calls" if any(isinstance(e, ToolCall) for e in events) else "stop"
    expected = whole(head, merge(events), stop_data(finish, None), Usage(7, 5, 3))
    assert message == expected
    check_message(expected, tools={"f"}, input_tokens=7)


def _without(kind: str) -> Callable[[list[Any]], list[Any]]:
    return lambda found: [e for e in found if e["type"] != kind]


def _twice(at: int) -> Callable[[list[Any]], list[Any]]:
    return lambda found: [*found[: at + 1], copy.deepcopy(found[at]), *found[at + 1 :]]


def _set(at: int, path: str, value: object) -> Callable[[list[Any]], list[Any]]:
    def change(found: list[Any]) -> list[Any]:
        *before, last = path.split(".")
        place = found[at]
        for key in before:
            place = place[key]
        place[last] = value
        return found

    return change


BROKEN = {
    "before message_start": _without("message_start"),
    "message_delta while a block is open": lambda f: [e for i, e in enumerate(f) if i != 12],
    "message_stop without message_delta": _without("message_delta"),
    "ends with message_delta": _without("message_stop"),
    "while no block is open": _without("content_block_start"),
    "a second message_start": _twice(0),
    "while a block is open": _twice(1),
    "after signature_delta": _twice(4),
    "content_block_stop while no block": _twice(5),
    "is no JSON": _twice(11),
    "message_delta after message_delta": _twice(13),
    "message_stop after message_stop": _twice(14),
    "ping before message_start": lambda f: [{"type": "ping"}, *f],
    "there is no event 'hello'": lambda f: [f[0], {"type": "hello"}, *f[1:]],
    "an error": lambda f: [
        *f[:3],
        {"type": "error", "error": {"type": "api_error", "message": "x"}},
    ],
    "block 1 has index 0": _set(6, "index", 0),
    "for block 0, 1 is open": _set(7, "index", 0),
    "text_delta in a block of type thinking": _set(2, "delta.type", "text_delta"),
    "without a signature": lambda f: [e for i, e in enumerate(f) if i != 4],
    "a call begins with input": _set(10, "content_block.input", {"x": 1}),
    "call id 'abc'": _set(10, "content_block.id", "abc"),
    "no tool is named 'g'": _set(10, "content_block.name", "g"),
    "end_turn with 1 calls": _set(13, "delta.stop_reason", "end_turn"),
    "stop_reason 'stop'": _set(13, "delta.stop_reason", "stop"),
    "with stop_sequence 'x'": _set(13, "delta.stop_sequence", "x"),
    "output_tokens None": _set(13, "usage.output_tokens", None),
    "8 in the usage": _set(13, "usage.input_tokens", 5),
    "message_start with content": _set(0, "message.content", [{}]),
    "keys of a message": _set(0, "message.extra", 1),
    "id 'chatcmpl-1'": _set(0, "message.id", "chatcmpl-1"),
}


@pytest.mark.parametrize("violation", BROKEN)
def test_the_validator_names_the_violation(violation: str) -> None:
    found = _stream(ANSWER)
    check_stream(found, tools={"f"}, input_tokens=7)
    with pytest.raises(AssertionError) as caught:
        check_stream(BROKEN[violation](found), tools={"f"}, input_tokens=7)
    assert violation in str(caught.value)


def test_a_torn_stream_is_still_held_to_the_order() -> None:
    found = _stream(ANSWER)
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "died"}}
    for at in range(1, len(found)):
        assert check_stream(found[:at], torn=True)["id"] == "msg_1"
        check_stream([*found[: at - 1], error], torn=True)
    with pytest.raises(AssertionError, match="something after an error"):
        check_stream([found[0], error, found[1]], torn=True)
    assert check_error(error) == "overloaded_error"
