"""The chat dialect over real HTTP, mostly through the official client, against the stub."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from edgekit_server.app import Server
from tests.support import sse
from tests.support.stub_engine import StubEngine

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
]


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _body(text: str, **more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": _messages(text), **more}


def _last_prompt(stub: StubEngine) -> str:
    line = [line for line in stub.lines() if line.startswith("generate ")][-1]
    return "".join(piece[0] for piece in json.loads(line.removeprefix("generate "))[2])


def test_answer_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=_messages("hi"))
    assert answer.choices[0].message.content == "hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


@pytest.mark.parametrize("text", ["hi", "call once", "call twice", "torn call", "think", "limit"])
@pytest.mark.parametrize("usage", [False, True])
def test_stream_keeps_the_contract(server: Server, text: str, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    response, found = sse.post(
        f"{server.url}/v1/chat/completions", _body(text, stream=True, tools=TOOLS, n=2, **options)
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-request-id"]
    sse.check_chat_stream(found, usage=usage, n=2)


def test_tool_call_round_trip(client: openai.OpenAI, shared_stub: StubEngine) -> None:
    messages = _messages("call once")
    first = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    call = message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Bern"},
    )
    history = [
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sun"},
    ]
    client.chat.completions.create(model="tiny", messages=[*messages, *history], tools=TOOLS)
    assert _last_prompt(shared_stub).endswith(
        '[INST]call once[/INST][TOOL_CALLS]get_weather[ARGS]{"city": "Bern"}</s>'
        "[TOOL_RESULTS]sun[/TOOL_RESULTS]"
    )


def test_streamed_calls_through_the_client_s_accumulator(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny", messages=_messages("call twice"), tools=TOOLS
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.content == "Both. "
    assert message.tool_calls is not None
    assert [c.function.arguments for c in message.tool_calls] == ['{"city": "Bern"}'] * 2
    assert len({c.id for c in message.tool_calls}) == 2


def test_parallel_tool_calls_false_stops_after_the_first(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=_messages("call twice"), tools=TOOLS, parallel_tool_calls=False
    )
    assert answer.choices[0].message.tool_calls is not None
    assert len(answer.choices[0].message.tool_calls) == 1
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(("text", "finish"), [("torn call", "stop"), ("cut call", "length")])
def test_unfinished_call_is_text(client: openai.OpenAI, text: str, finish: str) -> None:
    answer = client.chat.completions.create(model="tiny", messages=_messages(text), tools=TOOLS)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content == '[TOOL_CALLS]get_weather[ARGS]{"city":'
    assert answer.choices[0].finish_reason == finish


def test_tool_choice_none_shows_no_tools(client: openai.OpenAI, shared_stub: StubEngine) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=_messages("call once"), tools=TOOLS, tool_choice="none"
    )
    assert "[AVAILABLE_TOOLS]" not in _last_prompt(shared_stub)
    assert answer.choices[0].message.tool_calls is None


def test_named_tool_choice_shows_that_tool_only(
    client: openai.OpenAI, shared_stub: StubEngine
) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    client.chat.completions.create(
        model="tiny",
        messages=_messages("call once"),
        tools=[other, *TOOLS],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    assert "get_weather" in _last_prompt(shared_stub)
    assert "other" not in _last_prompt(shared_stub)


def test_hosted_tools_are_dropped(server: Server, shared_stub: StubEngine) -> None:
    body = _body("hi", tools=[{"type": "web_search"}, {"type": "namespace", "tools": []}, *TOOLS])
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200
    assert "web_search" not in _last_prompt(shared_stub)


def test_reasoning_has_its_own_field(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=_body("think")).json()
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "yes",
        "reasoning_content": "hm",
    }


@pytest.mark.parametrize(
    ("stop", "text"),
    [("two", "one "), (["four", "three"], "one two "), ([" four"] + ["z"] * 10, "one two three")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(
    client: openai.OpenAI, stop: str | list[str], text: str, stream: bool
) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=_messages("count"), stop=stop, stream=stream
    )
    if stream:
        chunks = [chunk.choices[0] for chunk in made]
        assert "".join(c.delta.content or "" for c in chunks) == text
        assert chunks[-1].finish_reason == "stop"
    else:
        assert made.choices[0].message.content == text
        assert made.choices[0].finish_reason == "stop"


def test_character_split_over_tokens(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=_messages("split character"), stream=True
    )
    assert [c.choices[0].delta.content for c in stream if c.choices[0].delta.content] == ["é"]


def test_several_choices_have_their_own_seeds(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=_messages("hi"), n=3, seed=7)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 15


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: openai.OpenAI, stream: bool) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=_messages("hi"), logprobs=True, top_logprobs=2, stream=stream
    )
    choices = [c for chunk in made for c in chunk.choices] if stream else made.choices
    content = [t for c in choices if c.logprobs for t in c.logprobs.content or []]
    assert [t.token for t in content] == list("hello")
    assert [len(t.top_logprobs) for t in content] == [2] * 5


def test_keep_alive_on_a_silent_stream(server: Server) -> None:
    _, found = sse.post(
        f"{server.url}/v1/chat/completions", _body("silent", stream=True), comments=True
    )
    assert found[:2] == [": keep-alive", ": keep-alive"]
    sse.check_chat_stream(found)


def test_keep_alive_while_a_call_is_being_written(server: Server) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    _, found = sse.post(
        f"{server.url}/v1/chat/completions",
        _body("slow call", stream=True, tools=tools),
        comments=True,
    )
    first_call = next(i for i, item in enumerate(found) if "tool_calls" in str(item))
    assert ": keep-alive" in found[:first_call]
    sse.check_chat_stream([item for item in found if item != ": keep-alive"])


def test_fields_that_real_clients_send_are_taken(server: Server) -> None:
    body = _body(
        "hi",
        max_tokens=10**9,
        max_completion_tokens=None,
        temperature=None,
        stop=None,
        tools=None,
        metadata={"a": 1},
        store=False,
        prompt_cache_key="k",
        prediction={"type": "content", "content": "x"},
        reasoning_effort="none",
        verbosity="low",
        chat_template_kwargs={"enable_thinking": False, "evil": "{{ 1 }}"},
        response_format={"type": "text"},
        logit_bias={"5": -100},
        top_k=-1,
        seed=-1,
        user="u",
    )
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "chat/completions",
        "v1//chat/completions/",
        "v1/v1/chat/completions",
        "v1/chat/completions?beta=true",
    ],
)
def test_paths_are_tolerant(server: Server, path: str) -> None:
    assert httpx.post(f"{server.url}/{path}", json=_body("hi")).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_content_type_does_not_matter(server: Server, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    url = f"{server.url}/v1/chat/completions"
    assert httpx.post(url, content=json.dumps(_body("hi")), headers=headers).status_code == 200


BAD: list[tuple[str, dict[str, object], str, str | None]] = [
    ("no messages", {"messages": []}, "empty_messages", "messages"),
    ("messages missing", {"messages": None}, "invalid_value", "messages"),
    ("bad role", {"messages": [{"role": "x", "content": ""}]}, "invalid_role", "messages[0].role"),
    (
        "image",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "unsupported_content",
        "messages[0].content[0]",
    ),
    (
        "no such format",
        {"response_format": {"type": "yaml"}},
        "invalid_value",
        "response_format.type",
    ),
    (
        "no schema",
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "invalid_value",
        "response_format.json_schema.schema",
    ),
    ("temperature", {"temperature": -1}, "invalid_value", "temperature"),
    ("temperature text", {"temperature": "hot"}, "invalid_value", "temperature"),
    ("n", {"n": 100}, "invalid_value", "n"),
    ("max_tokens", {"max_tokens": 0}, "invalid_value", "max_tokens"),
    ("stops", {"stop": ["x"] * 65}, "invalid_value", "stop"),
    ("bias", {"logit_bias": {"4096": 1}}, "invalid_value", "logit_bias"),
    ("top_logprobs", {"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ("tool", {"tools": [{"type": "function"}]}, "invalid_value", "tools[0].function"),
    ("tool_choice", {"tool_choice": "required"}, "invalid_value", "tool_choice"),
    (
        "named tool",
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "invalid_value",
        "tool_choice",
    ),
    ("stream", {"stream": "perhaps"}, "invalid_value", "stream"),
]


@pytest.mark.parametrize(("fields", "code", "param"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_requests_say_what_is_wrong(
    server: Server, fields: dict[str, object], code: str, param: str | None
) -> None:
    response = httpx.post(f"{server.url}/v1/chat/completions", json={**_body("hi"), **fields})
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert error["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"temperature": NaN}',
        b"[" * 100_000,
    ],
)
def test_malformed_json_is_a_400(server: Server, content: bytes) -> None:
    response = httpx.post(f"{server.url}/v1/chat/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_overflow_is_the_400_that_clients_know(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=_messages("overflow"), stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "maximum context length is 2048 tokens" in caught.value.message
    assert "resulted in 9000 tokens" in caught.value.message


def test_full_queue_is_a_429_with_a_time(server: Server) -> None:
    response = httpx.post(f"{server.url}/v1/chat/completions", json=_body("crowded"))
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


def test_tokenizer_failure_is_a_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="scripted"):
        client.chat.completions.create(model="tiny", messages=_messages("gibberish"))


def test_engine_error_mid_stream_is_an_event_and_the_end(server: Server) -> None:
    _, found = sse.post(f"{server.url}/v1/chat/completions", _body("fails", stream=True))
    assert found[-1]["error"]["code"] == "engine_error"
    assert "[DONE]" not in found


def test_unknown_model_is_the_404_that_clients_know(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=_messages("hi"))
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("model", ["tiny", "alias", "", None])
def test_names_of_the_model(server: Server, model: str | None) -> None:
    response = httpx.post(f"{server.url}/v1/chat/completions", json={**_body("hi"), "model": model})
    assert response.status_code == 200
    assert response.json()["model"] == "tiny"
