from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_server.chat import family
from edgekit_server.chat.parser import (
    ID_PATTERN,
    Event,
    Parser,
    ReasoningText,
    Text,
    ToolCall,
    merge,
    new_call_id,
)

Piece = tuple[bytes, bool]
SPECS = {spec.family: spec for spec in family.load_specs()}
V13, V11, V7 = (SPECS[f"mistral-{v}"] for v in ("v13", "v11", "v7"))
CALL, ARGS, CALL_ID = (b"[TOOL_CALLS]", True), (b"[ARGS]", True), (b"[CALL_ID]", True)
THINK, THINK_END, EOS = (b"[THINK]", True), (b"[/THINK]", True), (b"</s>", True)


def _ids() -> Callable[[], str]:
    count = itertools.count()
    return lambda: f"call{next(count):05d}"


def _parse(pieces: Sequence[Piece], spec: family.Spec = V13, **options: object) -> list[Event]:
    parser = Parser(spec, call_id=_ids(), **options)
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed([piece])
    return merge(events + parser.finish())


def text(value: str) -> Piece:
    return value.encode(), False


CASES: list[tuple[str, family.Spec, list[Piece], list[Event]]] = [
    ("text", V13, [text("hi"), EOS], [Text("hi")]),
    (
        "call",
        V13,
        [CALL, text("get"), text("_x"), ARGS, text('{"a": "}"}'), EOS],
        [ToolCall(0, "call00000", "get_x", '{"a": "}"}')],
    ),
    (
        "text, then two calls",
        V13,
        [text("ok "), CALL, text("f"), ARGS, text("{}"), CALL, text("g"), ARGS, text(' {"b":1}')],
        [
            Text("ok "),
            ToolCall(0, "call00000", "f", "{}"),
            ToolCall(1, "call00001", "g", '{"b":1}'),
        ],
    ),
    (
        "reasoning, and a call inside it",
        V13,
        [
            THINK,
            text("hm"),
            THINK_END,
            text("a"),
            THINK,
            text("b"),
            CALL,
            text("f"),
            ARGS,
            text("{}"),
        ],
        [ReasoningText("hm"), Text("a"), ReasoningText("b"), ToolCall(0, "call00000", "f", "{}")],
    ),
    (
        "an id of the model's own",
        V11,
        [CALL, text("f"), CALL_ID, text("abcDEF123"), ARGS, text("{}")],
        [ToolCall(0, "abcDEF123", "f", "{}")],
    ),
    (
        "an id that Mistral would refuse",
        V11,
        [CALL, text("f"), CALL_ID, text("1"), ARGS, text("{}")],
        [ToolCall(0, "call00000", "f", "{}")],
    ),
    (
        "a list of calls",
        V7,
        [
            CALL,
            text('[{"name": "f", "arguments": {"a": [1]}, "id": "abcDEF123"}, '),
            text('{"name": "g", "arguments": {}}]'),
            EOS,
        ],
        [ToolCall(0, "abcDEF123", "f", '{"a": [1]}'), ToolCall(1, "call00000", "g", "{}")],
    ),
    (
        "arguments that are no object",
        V13,
        [CALL, text("f"), ARGS, text("nothing")],
        [Text("[TOOL_CALLS]f[ARGS]nothing")],
    ),
    (
        "JSON that is balanced but wrong, then text",
        V13,
        [CALL, text("f"), ARGS, text("{a: 1} and more")],
        [Text("[TOOL_CALLS]f[ARGS]{a: 1} and more")],
    ),
    ("unfinished", V13, [CALL, text("f"), ARGS, text('{"a')], [Text('[TOOL_CALLS]f[ARGS]{"a')]),
    ("no name", V13, [CALL, ARGS, text("{}")], [Text("[TOOL_CALLS][ARGS]{}")]),
    (
        "NaN",
        V13,
        [CALL, text("f"), ARGS, text('{"a": NaN}')],
        [Text('[TOOL_CALLS]f[ARGS]{"a": NaN}')],
    ),
    (
        "the letters of a marker are text",
        V13,
        [text("[TOOL_CALLS]f[ARGS]{}")],
        [Text("[TOOL_CALLS]f[ARGS]{}")],
    ),
    ("half a character at the end", V13, [("é".encode()[:1], False)], [Text("\ufffd")]),
]


@pytest.mark.parametrize(
    ("spec", "pieces", "events"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_events(spec: family.Spec, pieces: list[Piece], events: list[Event]) -> None:
    assert _parse(pieces, spec) == events


def test_without_tools_a_call_is_shown_as_text() -> None:
    pieces = [CALL, text("f"), ARGS, text("{}"), EOS]
    assert _parse(pieces, tools=False) == [Text("[TOOL_CALLS]f[ARGS]{}")]


def test_prompt_that_opened_reasoning() -> None:
    pieces = [text("hm"), THINK_END, text("x")]
    assert _parse(pieces, in_reasoning=True) == [ReasoningText("hm"), Text("x")]


def test_stop_string_over_several_tokens_ends_the_answer() -> None:
    parser = Parser(V13, stop=["END", "\n\n"])
    assert parser.feed([text("one E")]) == [Text("one ")]
    assert parser.feed([text("N")]) == []
    assert parser.feed([text("x EN")]) == [Text("ENx ")]
    assert not parser.done
    assert parser.feed([text("D of it"), text("never")]) == []
    assert parser.done
    assert parser.stopped_by == "END"
    assert parser.finish() == []


def test_stop_string_inside_arguments_does_not_tear_the_call() -> None:
    events = _parse([CALL, text("f"), ARGS, text('{"a": "END"}'), text("END")], stop=["END"])
    assert events == [ToolCall(0, "call00000", "f", '{"a": "END"}')]


def test_call_limit() -> None:
    parser = Parser(V13, max_calls=1, call_id=_ids())
    events = parser.feed([CALL, text("f"), ARGS, text("{}x"), CALL, text("g"), ARGS, text("{}")])
    assert events == [ToolCall(0, "call00000", "f", "{}")]
    assert parser.done


def test_deep_nesting_is_text() -> None:
    bomb = '{"a":' * 5000
    assert _parse([CALL, text("f"), ARGS, text(bomb)]) == [Text("[TOOL_CALLS]f[ARGS]" + bomb)]


def test_new_ids_are_what_mistral_takes() -> None:
    assert all(ID_PATTERN.fullmatch(new_call_id()) for _ in range(100))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(max_size=4), json_values, max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> list[Piece]:
    """Answers of any quality: markers anywhere, calls whole, torn or none."""
    pieces: list[Piece] = []
    for kind in draw(st.lists(st.sampled_from(["text", "marker", "call", "bytes"]), max_size=8)):
        if kind == "text":
            pieces.append(text(draw(st.text('aé\n{}"\\[]EN😀', max_size=12))))
        elif kind == "bytes":
            pieces.append((draw(st.binary(max_size=4)), False))
        elif kind == "marker":
            pieces.append(draw(st.sampled_from([CALL, ARGS, CALL_ID, THINK, THINK_END, EOS])))
        else:
            body = json.dumps(draw(arguments), ensure_ascii=False)
            pieces += [CALL, text(draw(st.text("fg", max_size=3))), ARGS, text(body)]
    return pieces


@settings(max_examples=300)
@given(
    answers(),
    st.sampled_from([V13, V11, V7]),
    st.booleans(),
    st.lists(st.integers(1, 4)),
    st.data(),
)
def test_any_chunks_give_the_same_events(
    pieces: list[Piece], spec: family.Spec, tools: bool, sizes: list[int], data: st.DataObject
) -> None:
    stop = data.draw(st.lists(st.sampled_from(["EN", "N\n", "éé", "}{"]), max_size=2))
    whole = _join(pieces)
    chunked = [p for piece in whole for p in _split(piece, sizes)]
    options: dict[str, object] = {"stop": stop, "tools": tools}
    assert _parse(chunked, spec, **options) == _parse(whole, spec, **options)
    at_once = Parser(spec, call_id=_ids(), stop=stop, tools=tools)
    events = at_once.feed(whole)
    assert merge(events + at_once.finish()) == _parse(whole, spec, **options)


def _join(pieces: Sequence[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for data, control in pieces:
        if joined and not control and not joined[-1][1]:
            joined[-1] = (joined[-1][0] + data, False)
        else:
            joined.append((data, control))
    return joined


def _split(piece: Piece, sizes: list[int]) -> list[Piece]:
    data, control = piece
    if control or not sizes:
        return [piece]
    parts, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(data):
            return parts or [piece]
        parts.append((data[at : at + size], False))
        at += size
    raise AssertionError


@given(st.lists(st.tuples(st.text("fgh_", min_size=1, max_size=5), arguments), max_size=4))
def test_every_wellformed_call_comes_out_unchanged(
    calls: list[tuple[str, dict[str, object]]],
) -> None:
    pieces: list[Piece] = []
    for name, value in calls:
        pieces += [CALL, text(name), ARGS, text(json.dumps(value))]
    events = _parse(pieces)
    assert [(e.name, json.loads(e.arguments)) for e in events if isinstance(e, ToolCall)] == calls
    assert len(events) == len(calls)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral-v13"),
        ("[TOOL_CALLS]{{ name }}[CALL_ID]{{ id }}[ARGS]", "mistral-v11"),
        ("[TOOL_CALLS][{{ calls }}]", "mistral-v7"),
        ("<|im_start|>", "plain"),
        (None, "plain"),
    ],
)
def test_family_is_recognised_with_a_reason(template: str | None, expected: str) -> None:
    spec, reason = family.recognise(template)
    assert spec.family == expected
    assert reason
