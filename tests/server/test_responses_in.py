"""Responses bodies become chat requests; what cannot be told a model is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit_server.api.responses_in import items_of, messages_of, translate
from edgekit_server.api.responses_schema import ResponsesRequest
from edgekit_server.api.responses_tools import Toolbox, choice_of, toolbox_of
from edgekit_server.chat.normalise import normalise
from edgekit_server.errors import RequestError

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
GIT = {"type": "namespace", "name": "git", "tools": [{"type": "function", "name": "log"}]}


def _chat(given: object = "hi", **more: object) -> Any:
    body = ResponsesRequest.model_validate({"input": given, **more})
    items = items_of(body.input, lambda _: None)
    return translate(body, [], items).chat


def _call(call_id: str, name: str = "weather", **more: object) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": "{}", **more}


def _output(call_id: str, output: object) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def _parts(kind: str, *texts: str) -> list[dict[str, str]]:
    return [{"type": kind, "text": text} for text in texts]


CASES: list[tuple[str, Any, list[dict[str, Any]]]] = [
    ("string", "hi", [{"role": "user", "content": "hi"}]),
    ("short form", [{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}]),
    (
        "null type",
        [{"type": None, "role": "user", "content": "hi"}],
        [{"role": "user", "content": "hi"}],
    ),
    (
        "parts",
        [{"type": "message", "role": "user", "content": _parts("input_text", "a", "b")}],
        [{"role": "user", "content": "a\nb"}],
    ),
    (
        "developer stays for the normaliser",
        [{"role": "developer", "content": "be brief"}],
        [{"role": "developer", "content": "be brief"}],
    ),
    (
        "refusal",
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
        [{"role": "assistant", "content": "no"}],
    ),
    (
        "a result of parts",
        [_output("c1", _parts("input_text", "sun", "rain"))],
        [{"role": "tool", "tool_call_id": "c1", "content": "sun\nrain"}],
    ),
    (
        "a result that is an image",
        [_output("c1", [{"type": "input_image", "image_url": "data:x"}])],
        [
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": "[input_image: not shown, this model takes text only]",
            }
        ],
    ),
    (
        "summary where there is no whole reasoning",
        [
            {"type": "reasoning", "summary": _parts("summary_text", "short"), "content": None},
            {"role": "assistant", "content": "yes"},
        ],
        [{"role": "assistant", "content": "yes", "reasoning_content": "short"}],
    ),
    (
        "encrypted reasoning has no text",
        [
            {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"},
            {"role": "assistant", "content": "yes"},
        ],
        [{"role": "assistant", "content": "yes"}],
    ),
    (
        "a search at the vendor has no words",
        [{"type": "web_search_call", "id": "ws_1", "status": "completed"}],
        [],
    ),
]


@pytest.mark.parametrize(("given", "messages"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_items_become_messages(given: Any, messages: list[dict[str, Any]]) -> None:
    assert messages_of(items_of(given, lambda _: None), Toolbox()) == messages


def test_calls_join_the_turn_that_made_them() -> None:
    items = [
        {"role": "user", "content": "both"},
        {"type": "reasoning", "summary": [], "content": _parts("reasoning_text", "hm")},
        {"role": "assistant", "content": _parts("output_text", "Both.")},
        _call("aaaaaaaaa"),
        _call("bbbbbbbbb"),
        _output("aaaaaaaaa", "1"),
        _output("bbbbbbbbb", "2"),
        _call("ccccccccc"),
        _output("ccccccccc", "3"),
    ]
    messages = messages_of(items, Toolbox())
    assert [m["role"] for m in messages] == [
        "user", "assistant", "tool", "tool", "assistant", "tool",
    ]  # fmt: skip
    assert messages[1]["content"] == "Both."
    assert messages[1]["reasoning_content"] == "hm"
    assert [c["id"] for c in messages[1]["tool_calls"]] == ["aaaaaaaaa", "bbbbbbbbb"]
    assert messages[4]["content"] == ""


def test_the_prefix_of_a_conversation_never_changes() -> None:
    items = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": "env"},
        {"role": "user", "content": "task"},
        {"role": "assistant", "content": _parts("output_text", "I look.")},
        _call("aaaaaaaaa"),
        _output("aaaaaaaaa", "1"),
        _call("bbbbbbbbb"),
        _output("bbbbbbbbb", "2"),
    ]
    before = normalise(messages_of(items[:6], Toolbox()))
    assert normalise(messages_of(items, Toolbox()))[: len(before)] == before


def test_a_custom_call_is_a_call_with_one_text() -> None:
    items = [
        {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "*** é"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"},
    ]
    messages = messages_of(items, Toolbox())
    assert messages[0]["tool_calls"][0]["function"] == {
        "name": "patch",
        "arguments": '{"input": "*** é"}',
    }
    assert messages[1]["role"] == "tool"


def test_instructions_lead_and_the_earlier_conversation_follows() -> None:
    body = ResponsesRequest.model_validate({"input": "more", "instructions": "brief"})
    before = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "yes"}]
    messages = translate(body, before, items_of("more", lambda _: None)).chat.messages
    assert [m["content"] for m in messages] == ["brief", "first", "yes", "more"]
    assert messages[0]["role"] == "system"


def test_references_are_looked_up() -> None:
    known = {"msg_1": {"type": "message", "role": "assistant", "content": "yes"}}
    given: list[Any] = [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}]
    assert items_of(given, known.get) == [known["msg_1"]] * 2
    with pytest.raises(RequestError) as caught:
        items_of([*given, {"type": "item_reference", "id": "msg_2"}], known.get)
    assert (caught.value.code, caught.value.param) == ("item_not_found", "input[2].id")


BAD_ITEMS: list[tuple[str, Any, str, str]] = [
    ("image", {"role": "user", "content": [{"type": "input_image"}]}, "unsupported_content",
     "input[0].content[0]"),
    ("strange result", _output("c", [{"type": "input_audio"}]), "unsupported_content",
     "input[0].output[0]"),
    ("object result", _output("c", {"a": 1}), "invalid_content", "input[0].output"),
    ("content number", {"role": "user", "content": 5}, "invalid_content", "input[0].content"),
    ("text number", {"role": "user", "content": [{"type": "input_text", "text": 5}]},
     "unsupported_content", "input[0].content[0]"),
    ("role", {"role": "tool", "content": "x"}, "invalid_role", "input[0].role"),
    ("no type", {"content": "x"}, "unsupported_item", "input[0].type"),
    ("vendor's", {"type": "computer_call"}, "unsupported_item", "input[0].type"),
    ("type is a list", {"type": []}, "unsupported_item", "input[0].type"),
    ("call without name", {"type": "function_call", "call_id": "c"}, "invalid_value",
     "input[0].name"),
    ("call without id", {"type": "function_call", "name": "f"}, "invalid_value",
     "input[0].call_id"),
    ("result without id", {"type": "function_call_output", "output": "x"}, "invalid_value",
     "input[0].call_id"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "code", "param"), [b[1:] for b in BAD_ITEMS], ids=[b[0] for b in BAD_ITEMS]
)
def test_what_a_model_cannot_be_told_is_refused(item: Any, code: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        messages_of([item], Toolbox())
    assert (caught.value.code, caught.value.param) == (code, param)


def test_settings_are_carried_over() -> None:
    chat = _chat(
        temperature=0.5, top_p=0.9, seed=7, stop=["x"], max_output_tokens=5, stream=True,
        parallel_tool_calls=False, tools=[WEATHER], tool_choice="required", top_logprobs=2,
        include=["message.output_text.logprobs"], reasoning={"effort": "none", "summary": "auto"},
        logit_bias={"5": 1}, **{"speculative.n_max": 0},
    )  # fmt: skip
    assert (chat.temperature, chat.top_p, chat.seed, chat.stops) == (0.5, 0.9, 7, ["x"])
    assert (chat.max_completion_tokens, chat.stream, chat.n) == (5, True, None)
    assert (chat.parallel_tool_calls, chat.tool_choice) == (False, "required")
    assert (chat.logprobs, chat.top_logprobs, chat.logit_bias) == (True, 2, {"5": 1})
    assert (chat.reasoning_effort, chat.n_drafts) == ("none", 0)
    assert chat.tools == [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, ("json_object", None)),
        (
            {"type": "json_schema", "name": "n", "strict": True, "schema": {"type": "object"}},
            ("json_schema", {"schema": {"type": "object"}}),
        ),
    ],
)
def test_text_format(format: Any, expected: Any) -> None:
    given = _chat(text={"format": format, "verbosity": "low"}).response_format
    assert (given and (given.type, given.json_schema)) == expected


BAD_BODIES: list[tuple[dict[str, Any], str, str]] = [
    ({"input": []}, "empty_input", "input"),
    ({"background": True}, "unsupported_parameter", "background"),
    ({"conversation": "conv_1"}, "unsupported_parameter", "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "unsupported_parameter", "prompt"),
    ({"n": 2}, "unsupported_parameter", "n"),
    ({"text": {"format": {"type": "grammar"}}}, "invalid_value", "text.format.type"),
    ({"tools": [{"name": "x"}]}, "invalid_value", "tools[0].type"),
    ({"tools": [WEATHER, {"type": "function"}]}, "invalid_value", "tools[1]"),
    ({"tools": [{"type": "namespace", "name": "x"}]}, "invalid_value", "tools[0]"),
    (
        {"tools": [{"type": "namespace", "name": "x", "tools": [{"type": "function"}]}]},
        "invalid_value",
        "tools[0].tools[0]",
    ),
    ({"tool_choice": "any"}, "invalid_value", "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "x"}}, "invalid_value", "tool_choice"),
    ({"tool_choice": {"type": "web_search"}}, "unsupported_parameter", "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools"}}, "invalid_value", "tool_choice"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD_BODIES)
def test_bad_bodies_say_what_is_wrong(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        _chat(**{"given": fields.pop("input", "hi"), **fields})
    assert (caught.value.code, caught.value.param) == (code, param)


def test_errors_name_the_fields_that_the_client_sent() -> None:
    body = ResponsesRequest.model_validate(
        {"input": "hi", "tools": [{"type": "web_search"}, WEATHER, GIT]}
    )
    translated = translate(body, [], items_of(body.input, lambda _: None))
    for param, own in [
        ("tools[0].function.parameters", "tools[1].parameters"),
        ("tools[1].function", "tools[2].tools[0]"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("max_completion_tokens", "max_output_tokens"),
        ("temperature", "temperature"),
    ]:
        error = translated.in_own_words(RequestError(f"{param}: no", status=429, param=param))
        assert (error.param, error.message, error.status) == (own, f"{own}: no", 429)


def test_tools_that_run_elsewhere_are_left_out_and_not_echoed() -> None:
    box = toolbox_of([{"type": "web_search"}, WEATHER, {"type": "custom", "name": "x"}, GIT])
    assert [tool.shown for tool in box.tools] == ["weather", "log"]
    assert box.own("log") == ("log", "git")
    assert box.own("unknown") == ("unknown", None)
    assert [tool["type"] for tool in box.echo()] == ["function", "namespace"]
    assert [tool["name"] for tool in box.echo()[1]["tools"]] == ["log"]


def test_names_that_two_namespaces_share_are_told_apart() -> None:
    other = {**GIT, "name": "svn"}
    box = toolbox_of([GIT, other, {"type": "function", "name": "log"}])
    assert [tool.shown for tool in box.tools] == ["git__log", "svn__log", "log"]
    assert [box.own(tool.shown) for tool in box.tools] == [
        ("log", "git"), ("log", "svn"), ("log", None),
    ]  # fmt: skip
    assert box.shown("log", "svn") == "svn__log"
    assert box.shown("gone", "svn") == "gone"
    messages = messages_of([_call("c", "log", namespace="svn")], box)
    assert messages[0]["tool_calls"][0]["function"]["name"] == "svn__log"


def test_choices() -> None:
    box = toolbox_of([WEATHER, GIT])
    named = {"type": "function", "function": {"name": "log"}}
    assert choice_of(None, box) == (box, None)
    assert choice_of("required", box) == (box, "required")
    assert choice_of({"type": "function", "name": "log"}, box) == (box, named)
    assert choice_of({"type": "function", "function": {"name": "log"}}, box) == (box, named)
    allowed, mode = choice_of(
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "weather"}, {"type": "web_search"}],
        },
        box,
    )
    assert ([tool.shown for tool in allowed.tools], mode) == (["weather"], "required")
