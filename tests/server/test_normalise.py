from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.chat.normalise import Turn, call_id_of, normalise
from edgekit_server.chat.parser import ID_PATTERN
from edgekit_server.errors import RequestError


def _says(role: str, content: object = "x", **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def _call(arguments: object = "{}", call_id: str = "abcDEF123") -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}


CASES: list[tuple[str, list[dict[str, object]], list[dict[str, object]]]] = [
    ("developer is system", [_says("developer"), _says("user")], [_says("system"), _says("user")]),
    (
        "system turns before the first answer are joined in front",
        [_says("system", "a"), _says("user", "u"), _says("system", "b"), _says("assistant", "c")],
        [_says("system", "a\n\nb"), _says("user", "u"), _says("assistant", "c")],
    ),
    (
        "a later system turn goes into the user turn after it",
        [_says("user", "u"), _says("assistant", "c"), _says("system", "s"), _says("user", "v")],
        [_says("user", "u"), _says("assistant", "c"), _says("user", "<system>\ns\n</system>\n\nv")],
    ),
    (
        "a later system turn goes into the user turn before it",
        [_says("user", "u"), _says("assistant", "c"), _says("user", "v"), _says("system", "s")],
        [_says("user", "u"), _says("assistant", "c"), _says("user", "v\n\n<system>\ns\n</system>")],
    ),
    (
        "a system turn after a tool result joins the result",
        [
            _says("user", "u"),
            _says("assistant", "", tool_calls=[_call()]),
            _says("tool", "r", tool_call_id="abcDEF123"),
            _says("system", "s"),
        ],
        [
            _says("user", "u"),
            _says("assistant", "", tool_calls=[_call({})]),
            _says("tool", "r\n\n<system>\ns\n</system>", tool_call_id="abcDEF123"),
        ],
    ),
    ("user turns are joined", [_says("user", "a"), _says("user", "b")], [_says("user", "a\n\nb")]),
    (
        "answers are joined, calls kept",
        [
            _says("user"),
            _says("assistant", "a"),
            _says("assistant", None, tool_calls=[_call('{"k": 1}')]),
        ],
        [_says("user"), _says("assistant", "a", tool_calls=[_call({"k": 1})])],
    ),
    (
        "arrays of text",
        [
            _says(
                "user",
                [
                    {"type": "text", "text": "a", "cache_control": {"type": "x"}},
                    {"type": "text", "text": "b"},
                ],
            )
        ],
        [_says("user", "a\nb")],
    ),
    ("null content", [_says("user", None)], [_says("user", "")]),
    (
        "text that is no JSON stays",
        [_says("user"), _says("assistant", "", tool_calls=[_call("not json")])],
        [_says("user"), _says("assistant", "", tool_calls=[_call("not json")])],
    ),
    (
        "reasoning and unknown keys are dropped",
        [_says("user"), _says("assistant", "a", reasoning_content="hm", audio=None, refusal=None)],
        [_says("user"), _says("assistant", "a")],
    ),
    (
        "results are not joined",
        [
            _says("user"),
            _says("tool", "1", tool_call_id="a" * 9),
            _says("tool", "2", tool_call_id="b" * 9),
        ],
        [
            _says("user"),
            _says("tool", "1", tool_call_id="a" * 9),
            _says("tool", "2", tool_call_id="b" * 9),
        ],
    ),
]


@pytest.mark.parametrize(("given_", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_normalise(given_: list[Turn], expected: list[Turn]) -> None:
    assert normalise(given_) == expected


@pytest.mark.parametrize("content", [None, "", " ", "\n"])
def test_empty_text_beside_a_call_is_one_prefix(content: str | None) -> None:
    turns = normalise([_says("user"), _says("assistant", content, tool_calls=[_call()])])
    assert turns[1]["content"] == ""


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        ([], "empty_messages", "messages"),
        ([_says("wizard")], "invalid_role", "messages[0].role"),
        ([{"content": "x"}], "invalid_role", "messages[0].role"),
        ([_says("user", 5)], "invalid_content", "messages[0].content"),
        (
            [_says("user", [{"type": "image_url", "image_url": {"url": "x"}}])],
            "unsupported_content",
            "messages[0].content[0]",
        ),
        (
            [_says("user"), _says("assistant", "", tool_calls=[{"id": "x"}])],
            "invalid_call",
            "messages[1].tool_calls[0]",
        ),
    ],
)
def test_refusals_name_the_field(messages: list[Turn], code: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        normalise(messages)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_foreign_ids_become_stable_nine_letters() -> None:
    made = call_id_of("call_0123456789abcdef")
    assert ID_PATTERN.fullmatch(made)
    assert made == call_id_of("call_0123456789abcdef") != call_id_of("call_0")
    assert call_id_of("abcDEF123") == "abcDEF123"


contents = (
    st.none()
    | st.text(max_size=6)
    | st.lists(st.builds(lambda t: {"type": "text", "text": t}, st.text(max_size=4)), max_size=3)
)
messages = st.lists(
    st.builds(
        _says,
        st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        contents,
        tool_calls=st.just([]) | st.just([_call(json.dumps({"a": 1}))]),
    ),
    min_size=1,
    max_size=10,
)


@given(messages)
def test_result_is_what_strict_templates_ask_for(given_: list[Turn]) -> None:
    if all(message["role"] in ("system", "developer") for message in given_):
        given_ = [*given_, _says("user")]
    turns = normalise(given_)
    roles = [turn["role"] for turn in turns]
    assert "system" not in roles[1:]
    assert all(isinstance(turn["content"], str) for turn in turns)
    pairs = itertools.pairwise(roles)
    assert not any(a == b and a in ("user", "assistant") for a, b in pairs)
    assert normalise(turns) == turns


def test_reasoning_is_kept_where_a_family_reasons() -> None:
    said = [_says("user"), _says("assistant", "a", reasoning_content="hm")]
    assert normalise(said, reasoning=True)[1]["reasoning_content"] == "hm"
    twice = [*said, _says("assistant", "b", reasoning="so")]
    assert normalise(twice, reasoning=True)[1] == {
        "role": "assistant", "content": "a\n\nb", "reasoning_content": "hm\n\nso",
    }  # fmt: skip


def test_results_without_an_id_get_that_of_their_call() -> None:
    calls = [
        {"id": name * 9, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for name in "fgh"
    ]
    turns = normalise(
        [
            _says("user"),
            _says("assistant", None, tool_calls=calls),
            _says("tool", "2", name="g"),
            _says("function", "1"),
            _says("tool", "3", tool_call_id="h" * 9),
            _says("tool", "nobody asked"),
        ]
    )
    ids = [turn.get("tool_call_id") for turn in turns[2:]]
    assert ids == ["g" * 9, "f" * 9, "h" * 9, None]


def test_a_call_in_the_old_form_is_a_call() -> None:
    old = {"name": "f", "arguments": '{"a": 1}'}
    turns = normalise([_says("user"), _says("assistant", None, function_call=old)])
    (call,) = turns[1]["tool_calls"]  # type: ignore[misc]
    assert call["function"] == {"name": "f", "arguments": {"a": 1}}  # type: ignore[index,call-overload]
