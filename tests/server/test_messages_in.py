"""Anthropic's body to the shared request: every block, every choice, every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.api.messages_body import CountTokensRequest, MessagesRequest
from edgekit_server.api.messages_in import check_last, in_own_words, to_chat
from edgekit_server.chat.normalise import call_id_of, normalise
from edgekit_server.errors import ContextLengthError, RequestError

BILLING = "x-anthropic-billing-header: cc_version=9.9; cch=0a1b2;"
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}


def _text(text: str, **more: object) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def _use(call_id: str = "toolu_abcDEF123", **more: object) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "f", "input": {"x": 1}, **more}


def _result(content: object = "42", call_id: str = "toolu_abcDEF123", **more: object) -> Any:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **more}


def _says(role: str, content: object = "hi") -> dict[str, Any]:
    return {"role": role, "content": content}


def _body(*messages: dict[str, Any], **more: object) -> MessagesRequest:
    given_ = {"model": "m", "max_tokens": 9, "messages": [*messages] or [_says("user")], **more}
    return MessagesRequest.model_validate(given_)


def _messages(*messages: dict[str, Any], **more: object) -> list[dict[str, Any]]:
    return to_chat(_body(*messages, **more)).messages


CALL = {"id": "abcDEF123", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TURNS = [
    ("plain", [_says("user", "hi")], [_says("user", "hi")]),
    ("text blocks", [_says("user", [_text("a"), _text("b")])], [_says("user", "a\nb")]),
    (
        "cache_control and unknown fields",
        [_says("user", [_text("a", cache_control={"type": "ephemeral"}, new=1)])],
        [_says("user", "a")],
    ),
    (
        "a system message in the middle",
        [_says("user"), _says("system", [_text("note")]), _says("system", "more")],
        [_says("user"), _says("system", "note"), _says("system", "more")],
    ),
    (
        "a call",
        [_says("assistant", [_text("I "), _text("look."), _use()])],
        [{**_says("assistant", "I look."), "tool_calls": [CALL]}],
    ),
    (
        "thoughts, one of which nobody can read",
        [
            _says(
                "assistant",
                [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "AAAA"},
                    _text("yes"),
                ],
            )
        ],
        [{**_says("assistant", "yes"), "reasoning_content": "hm"}],
    ),
    (
        "a thought that was not shown",
        [
            _says(
                "assistant",
                [
                    {"type": "thinking", "thinking": "", "signature": "s"},
                    {"type": "thinking", "thinking": "", "signature": "edgekit:aG0="},
                ],
            )
        ],
        [{**_says("assistant", ""), "reasoning_content": "hm"}],
    ),
    (
        "results come before what the user says, wherever they stand",
        [_says("user", [_text("go on"), _result()])],
        [{**_says("tool", "42"), "tool_call_id": "abcDEF123"}, _says("user", "go on")],
    ),
    (
        "results of two calls",
        [_says("user", [_result("1"), _result([_text("2"), _text("3")], "toolu_123456789")])],
        [
            {**_says("tool", "1"), "tool_call_id": "abcDEF123"},
            {**_says("tool", "2\n3"), "tool_call_id": "123456789"},
        ],
    ),
    (
        "what an agent's search among its tools found",
        [_says("user", [_result([{"type": "tool_reference", "tool_name": "grep"}])])],
        [{**_says("tool", "grep"), "tool_call_id": "abcDEF123"}],
    ),
    (
        "documents that are text",
        [
            _says(
                "user",
                [
                    {"type": "document", "source": {"type": "text", "data": "d"}},
                    {"type": "document", "source": {"type": "content", "content": [_text("e")]}},
                    {"type": "search_result", "title": "t", "source": "u", "content": [_text("f")]},
                ],
            )
        ],
        [_says("user", "d\ne\nt\nu\nf")],
    ),
    ("an empty turn stays one", [_says("user", [])], [_says("user", "")]),
]


@pytest.mark.parametrize(("given_", "expected"), [t[1:] for t in TURNS], ids=[t[0] for t in TURNS])
def test_turns(given_: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert _messages(*given_) == expected


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("Be brief.", "Be brief."),
        ([_text("a", cache_control={"type": "ephemeral"}), _text("b")], "a\nb"),
        ([_text(BILLING), _text("a")], "a"),
        ([_text(BILLING)], None),
        (f"{BILLING}\nBe brief.", "Be brief."),
        ("", None),
        ([], None),
        (None, None),
    ],
)
def test_system(system: object, expected: str | None) -> None:
    leading = [] if expected is None else [_says("system", expected)]
    assert _messages(system=system) == [*leading, _says("user")]


def test_billing_line_in_a_system_message_goes_too() -> None:
    found = _messages(_says("user"), _says("system", [_text(BILLING), _text("note")]))
    assert found[1] == _says("system", "note")


@pytest.mark.parametrize(
    ("content", "error", "expected"),
    [
        ("no such file", True, "Error: no such file"),
        ("Error: no such file", True, "Error: no such file"),
        ([_text("gone")], True, "Error: gone"),
        ("", True, "Error"),
        (None, True, "Error"),
        (None, None, ""),
        ("fine", False, "fine"),
    ],
)
def test_failed_results_say_so(content: object, error: bool | None, expected: str) -> None:
    found = _messages(_says("user", [_result(content, is_error=error)]))
    assert found[0]["content"] == expected


@pytest.mark.parametrize("call_id", ["toolu_abcDEF123", "toolu_01A09q90qw90lq917835lq9", "x", "é"])
def test_a_call_and_its_result_keep_one_id(call_id: str) -> None:
    """Ours go back to the nine letters that the model wrote; others to nine that stand for them."""
    turns = normalise(
        _messages(
            _says("user"),
            _says("assistant", [_use(call_id)]),
            _says("user", [_result("r", call_id)]),
        )
    )
    calls: Any = turns[1]["tool_calls"]
    assert calls[0]["id"] == turns[2]["tool_call_id"]
    own = call_id == "toolu_abcDEF123"
    assert calls[0]["id"] == ("abcDEF123" if own else call_id_of(call_id))


TOOL = {"name": "f", "description": "does", "input_schema": {"type": "object"}, "strict": True}


def test_tools() -> None:
    tools = [
        TOOL,
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"type": "custom", "name": "g", "defer_loading": True, "cache_control": None},
        {"type": "mcp_toolset", "mcp_server_name": "s"},
    ]
    assert to_chat(_body(tools=tools)).tools == [
        {
            "type": "function",
            "function": {"name": "f", "description": "does", "parameters": {"type": "object"}},
        },
        {"type": "web_search_20250305"},
        {"type": "function", "function": {"name": "g"}},
        {"type": "mcp_toolset"},
    ]


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, None, None),
        ({"type": "auto"}, "auto", None),
        ({"type": "any"}, "required", None),
        ({"type": "none"}, "none", None),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any", "disable_parallel_tool_use": False}, "required", True),
    ],
)
def test_tool_choice(choice: object, expected: str | None, parallel: bool | None) -> None:
    chat = to_chat(_body(tools=[TOOL], tool_choice=choice))
    assert (chat.tool_choice, chat.parallel_tool_calls) == (expected, parallel)


def test_tool_choice_of_one() -> None:
    chat = to_chat(_body(tools=[TOOL], tool_choice={"type": "tool", "name": "f"}))
    assert chat.model_dump()["tool_choice"]["function"] == {"name": "f"}


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        (None, None),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 2048}, True),
        ({"type": "adaptive", "display": "summarized"}, None),
        ({"type": "between_tools"}, None),
    ],
)
def test_thinking(thinking: object, expected: bool | None) -> None:
    kwargs = to_chat(_body(thinking=thinking)).chat_template_kwargs
    assert (kwargs.enable_thinking if kwargs else None) is expected


@pytest.mark.parametrize(
    ("effort", "expected"),
    [(None, None), ("low", "low"), ("high", "high"), ("max", "high"), ("huge", None)],
)
def test_effort(effort: str | None, expected: str | None) -> None:
    assert to_chat(_body(output_config={"effort": effort})).reasoning_effort == expected


@pytest.mark.parametrize("nested", [False, True])
def test_format(nested: bool) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    more = (
        {"output_config": {"effort": "low", "format": form}} if nested else {"output_format": form}
    )
    found = to_chat(_body(**more)).response_format
    assert found is not None
    assert (found.type, found.schema_) == ("json_schema", {"type": "object"})


def test_sampling_and_limits() -> None:
    chat = to_chat(
        _body(
            max_tokens=32000,
            stop_sequences=["X", ""],
            temperature=0.5,
            top_p=0.9,
            top_k=4,
            stream=True,
            metadata={"user_id": "u"},
            context_management={"edits": []},
        )
    )
    assert (chat.max_tokens, chat.stops, chat.stream) == (32000, ["X"], True)
    assert (chat.temperature, chat.top_p, chat.top_k) == (0.5, 0.9, 4)
    assert to_chat(CountTokensRequest.model_validate({"messages": [_says("user")]})).stops == []


USER = _says("user")
REFUSED = [
    (_body(_says("user", [_text("a"), IMAGE])), "messages[0].content[1]"),
    (_body(USER, _says("user", [_result([IMAGE])])), "messages[1].content[0].content[0]"),
    (_body(system=[_text("a"), IMAGE]), "system[1]"),
    (
        _body(_says("user", [{"type": "document", "source": {"type": "base64", "data": ""}}])),
        "messages[0].content[0]",
    ),
    (_body(_says("user", [_use()])), "messages[0].content[0]"),
    (_body(_says("assistant", [_result()])), "messages[0].content[0]"),
    (_body(_says("user", [{}])), "messages[0].content[0]"),
    (_body(_says("user", [{"type": "text"}])), "messages[0].content[0].text"),
    (_body(_says("user", [_result(5)])), "messages[0].content[0].content"),
    (_body(_says("user", [_result(["a"])])), "messages[0].content[0].content"),
    (_body(_says("user", [_result("r", "")])), "messages[0].content[0].tool_use_id"),
    (_body(_says("assistant", [_use(name="")])), "messages[0].content[0].name"),
    (_body(_says("assistant", [_use(input="x")])), "messages[0].content[0].input"),
    (_body(_says("assistant", [_use(id=7)])), "messages[0].content[0].id"),
    (_body(tools=[TOOL, {"description": "no name"}]), "tools[1].name"),
    (_body(tools=[TOOL], tool_choice={"type": "tool"}), "tool_choice.name"),
    (
        _body(
            output_format={"type": "json_schema", "schema": {}},
            output_config={"format": {"type": "json_schema", "schema": {}}},
        ),
        "output_format",
    ),
]


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=[r[1] for r in REFUSED])
def test_refusals_name_the_part(body: MessagesRequest, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        to_chat(body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(param)


def test_an_answer_that_was_begun_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^messages\[1\]: .*must end with a user message"):
        check_last(_body(USER, _says("assistant", "{")))
    check_last(_body(USER, _says("assistant", "a"), USER))


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("tools[3].function.parameters", "tools[3].input_schema"),
        ("tools[3].function", "tools[3]"),
        ("response_format.schema", "output_format.schema"),
        ("response_format", "output_format"),
        ("tool_choice", "tool_choice"),
    ],
)
def test_errors_name_the_client_s_own_fields(param: str, expected: str) -> None:
    body = _body(output_format={"type": "json_schema", "schema": {}})
    error = in_own_words(RequestError(f"{param}: no", param=param, code="c", status=422), body)
    assert (error.param, error.message) == (expected, f"{expected}: no")
    assert (error.code, error.status) == ("c", 422)


def test_format_errors_name_the_newer_place() -> None:
    body = _body(output_config={"format": {"type": "json_schema", "schema": {}}})
    error = in_own_words(RequestError("bad", param="response_format.schema"), body)
    assert error.param == "output_config.format.schema"


def test_overflow_keeps_its_numbers() -> None:
    error = ContextLengthError(9, 8)
    assert in_own_words(error, _body()) is error


leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
blocks = st.dictionaries(
    st.sampled_from(
        ["text", "thinking", "id", "tool_use_id", "name", "input", "content", "source", "is_error"]
    ),
    anything,
    max_size=5,
).flatmap(
    lambda block: st.sampled_from(
        ["text", "tool_use", "tool_result", "thinking", "redacted_thinking", "document", "image"]
    ).map(lambda kind: {**block, "type": kind})
)
turns = st.builds(
    _says,
    st.sampled_from(["user", "assistant", "system"]),
    st.text(max_size=9) | st.lists(blocks, max_size=3),
)


@given(st.lists(turns, min_size=1, max_size=4), st.text(max_size=9) | st.lists(blocks, max_size=2))
def test_whatever_comes_is_translated_or_refused(given_: list[Any], system: Any) -> None:
    body = _body(*given_, system=system)
    found: list[RequestError] = []
    turns_: list[Any] = []
    try:
        turns_ = to_chat(body).messages
    except RequestError as error:
        found.append(error)
    assert all((error.param or "").startswith(("messages[", "system[")) for error in found)
    roles = {turn["role"] for turn in normalise([*turns_, USER])}
    assert roles <= {"system", "user", "assistant", "tool"}
