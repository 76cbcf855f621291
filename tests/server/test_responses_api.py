"""The Responses dialect over real HTTP, mostly through the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from edgekit_server.app import Server
from tests.support.http_server import config_for, running
from tests.support.pocket import convert_pocket
from tests.support.responses_contract import check_response, check_stream, read
from tests.support.stub_engine import Rule, StubEngine, said


def _call(name: str, arguments: str) -> list[list[object]]:
    return [["[TOOL_CALLS]", True], [name, False], ["[ARGS]", True], [arguments, False]]


WEATHER = _call("get_weather", '{"city": "Bern"}')
RULES = [
    Rule("result three", said("all done")),
    Rule("result two", _call("send", '{"to": "Ada"}')),
    Rule("result one", [["Next. ", False], *_call("read", '{"path": "/a"}')]),
    Rule("chain", _call("find", '{"name": "a"}')),
    Rule("call twice", [["Both. ", False], *WEATHER, ["\n", False], *WEATHER]),
    Rule("call once", WEATHER),
    Rule("torn call", WEATHER[:2]),
    Rule("think", [["[THINK]", True], *said("hm"), ["[/THINK]", True], *said("yes")]),
    Rule("json", said('{"city": "Bern"}')),
    Rule("limit", said("aaaa"), finish="length"),
    Rule("empty answer"),
    Rule("count", said("one two three")),
    Rule("long", said("x" * 2000), pause_s=0.02),
    Rule("silent", said("late"), silent_s=0.35),
    Rule("overflow", reject="context_length_exceeded"),
    Rule("crowded", reject="queue_full"),
    Rule("fails", said("ab"), finish="error"),
]
TOOLS: list[Any] = [
    {"type": "function", "name": name, "parameters": {"type": "object"}, "strict": False}
    for name in ("get_weather", "find", "read", "send")
]
TEXTS = [
    "hi", "call once", "call twice", "torn call", "think", "limit", "empty answer", "silent",
    "fails",
]  # fmt: skip


@pytest.fixture(scope="module")
def shared_stub(tmp_path_factory: pytest.TempPathFactory) -> StubEngine:
    return StubEngine(RULES, tmp_path_factory.mktemp("stub") / "stub.log")


def _post(server: Server, given: Any, /, **more: object) -> httpx.Response:
    body = {"model": "tiny", "input": given, **more}
    return httpx.post(f"{server.url}/v1/responses", json=body, timeout=20)


def _stream(server: Server, given: Any, /, **more: object) -> list[dict[str, Any]]:
    body = {"model": "tiny", "input": given, "stream": True, **more}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=20) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return read(response.iter_lines())


def _last_prompt(stub: StubEngine) -> str:
    line = [line for line in stub.lines() if line.startswith("generate ")][-1]
    return "".join(piece[0] for piece in json.loads(line.removeprefix("generate "))[2])


def test_answer_with_usage(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="hi")
    assert answer.output_text == "hello"
    assert (answer.status, answer.model, answer.error) == ("completed", "tiny", None)
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.total_tokens == answer.usage.input_tokens + 5


@pytest.mark.parametrize("text", TEXTS)
def test_stream_keeps_the_contract_and_says_what_the_whole_says(server: Server, text: str) -> None:
    streamed = check_stream(_stream(server, text, tools=TOOLS))
    assert streamed is not None
    whole = _post(server, text, tools=TOOLS)
    if text == "fails":
        assert (streamed["status"], streamed["error"]["code"]) == ("failed", "engine_error")
        assert whole.json()["error"]["code"] == "engine_error"
        return
    check_response(whole.json())
    assert _without_ids(streamed) == _without_ids(whole.json())


def _without_ids(response: dict[str, Any]) -> dict[str, Any]:
    output = [
        {k: v for k, v in item.items() if k not in ("id", "call_id")} for item in response["output"]
    ]
    return {**response, "id": "", "created_at": 0, "output": output}


@pytest.mark.parametrize("text", ["call twice", "think", "limit"])
def test_events_are_what_the_official_types_say(server: Server, text: str) -> None:
    known: Any = pydantic.TypeAdapter(ResponseStreamEvent)
    for event in _stream(server, text, tools=TOOLS):
        known.validate_python(event)
    Response.model_validate(_post(server, text, tools=TOOLS).json())


def test_a_cut_answer_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="limit", max_output_tokens=4)
    assert (answer.status, answer.output_text) == ("incomplete", "aaaa")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_reasoning_is_an_item_and_counted(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input="think") as stream:
        events = list(stream)
        answer = stream.get_final_response()
    assert [e.delta for e in events if e.type == "response.reasoning_text.delta"] == ["h", "m"]
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output_text == "yes"
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens == 4
    assert answer.usage.output_tokens == 7


def test_silence_is_a_real_event(server: Server) -> None:
    events = _stream(server, "silent")
    check_stream(events)
    still = [e for e in events if e["type"] == "response.in_progress"]
    assert len(still) >= 3
    assert {e["response"]["id"] for e in still} == {events[-1]["response"]["id"]}


def test_streamed_calls_through_the_client_s_accumulator(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input="call twice", tools=TOOLS) as stream:
        snapshots = [
            event.snapshot
            for event in stream
            if event.type == "response.function_call_arguments.delta"
        ]
        answer = stream.get_final_response()
    assert snapshots == ['{"city": "Bern"}'] * 2
    assert [item.type for item in answer.output] == ["message", "function_call", "function_call"]
    assert len({item.call_id for item in answer.output if item.type == "function_call"}) == 2


class City(pydantic.BaseModel):
    city: str


def test_parse_with_a_schema(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model="tiny", input="json", text_format=City)
    assert answer.output_parsed == City(city="Bern")
    with client.responses.stream(model="tiny", input="json", text_format=City) as stream:
        assert stream.get_final_response().output_parsed == City(city="Bern")


def test_parsed_tool_arguments(client: openai.OpenAI) -> None:
    class get_weather(City):
        """Weather of a city."""

    tool = openai.pydantic_function_tool(get_weather)["function"]
    answer = client.responses.parse(
        model="tiny",
        input="call once",
        tools=[{"type": "function", **tool}],  # type: ignore
    )
    call = answer.output[0]
    assert call.type == "function_call"
    assert call.parsed_arguments == {"city": "Bern"}


@pytest.mark.parametrize("by_id", [False, True])
def test_three_chained_calls(client: openai.OpenAI, shared_stub: StubEngine, by_id: bool) -> None:
    items: Any = [{"role": "user", "content": "chain"}]
    previous = None
    names = []
    for number in ("one", "two", "three"):
        with client.responses.stream(
            model="tiny", input=items, tools=TOOLS, previous_response_id=previous
        ) as stream:
            answer = stream.get_final_response()
        call = answer.output[-1]
        assert call.type == "function_call"
        names.append(call.name)
        result = {
            "type": "function_call_output", "call_id": call.call_id, "output": f"result {number}",
        }  # fmt: skip
        if by_id:
            items, previous = [result], answer.id
        else:
            items += [*(item.to_dict() for item in answer.output), result]
    last = client.responses.create(
        model="tiny", input=items, tools=TOOLS, previous_response_id=previous or openai.omit
    )
    assert names == ["find", "read", "send"]
    assert last.output_text == "all done"
    assert _last_prompt(shared_stub).endswith(
        '[INST]chain[/INST][TOOL_CALLS]find[ARGS]{"name": "a"}</s>'
        "[TOOL_RESULTS]result one[/TOOL_RESULTS]"
        'Next. [TOOL_CALLS]read[ARGS]{"path": "/a"}</s>'
        "[TOOL_RESULTS]result two[/TOOL_RESULTS]"
        '[TOOL_CALLS]send[ARGS]{"to": "Ada"}</s>'
        "[TOOL_RESULTS]result three[/TOOL_RESULTS]"
    )


def test_a_conversation_by_id(client: openai.OpenAI, shared_stub: StubEngine) -> None:
    first = client.responses.create(model="tiny", input="hi", instructions="old rules")
    second = client.responses.create(
        model="tiny", input="again", instructions="new rules", previous_response_id=first.id
    )
    assert second.previous_response_id == first.id
    assert _last_prompt(shared_stub) == (
        "<s>[SYSTEM_PROMPT]new rules[/SYSTEM_PROMPT][INST]hi[/INST]hello</s>[INST]again[/INST]"
    )
    assert client.responses.retrieve(second.id).to_dict() == second.to_dict()
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    client.responses.create(model="tiny", input="third", previous_response_id=second.id)
    assert _last_prompt(shared_stub).startswith("<s>[INST]hi[/INST]hello</s>[INST]again")


def test_an_item_by_reference(client: openai.OpenAI, shared_stub: StubEngine) -> None:
    first = client.responses.create(model="tiny", input="hi")
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    client.responses.create(
        model="tiny", input=[{"role": "user", "content": "hi"}, reference,
                             {"role": "user", "content": "more"}]
    )  # fmt: skip
    assert _last_prompt(shared_stub) == "<s>[INST]hi[/INST]hello</s>[INST]more[/INST]"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_stored_cannot_be_gone_on_from(client: openai.OpenAI, stream: bool) -> None:
    made: Any = client.responses.create(model="tiny", input="hi", store=False, stream=stream)
    answer = list(made)[-1].response if stream else made
    assert answer.store is False
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="x", previous_response_id=answer.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_a_failed_answer_is_not_kept(server: Server) -> None:
    failed = _stream(server, "fails")[-1]["response"]
    assert httpx.get(f"{server.url}/v1/responses/{failed['id']}").status_code == 404


def test_a_stored_answer_does_not_stream(server: Server) -> None:
    answer = _post(server, "hi").json()
    url = f"{server.url}/responses/{answer['id']}"
    assert httpx.get(url).json() == answer
    refused = httpx.get(url, params={"stream": "true"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")
    assert httpx.delete(url).json() == {"id": answer["id"], "object": "response", "deleted": True}
    assert httpx.delete(url).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server: Server, stream: bool) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    if stream:
        answer = check_stream(_stream(server, "hi", **fields))
    else:
        answer = _post(server, "hi", **fields).json()
    assert answer is not None
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs] == list("hello")
    assert [len(entry["top_logprobs"]) for entry in logprobs] == [2] * 5


def test_stop_strings_and_seeds_are_taken_here_too(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="count", extra_body={"stop": "two"})
    assert answer.output_text == "one "


def test_a_request_as_codex_sends_it(server: Server, shared_stub: StubEngine) -> None:
    """Shape as recorded: no instructions, three leading items, tools of three types."""
    tools = [
        {
            "type": "function",
            "name": "shell_command",
            "description": "Run a command",
            "strict": False,
            "parameters": {
                "type": "object",
                "properties": {"command": {"type": "string"}},
                "required": ["command"],
                "additionalProperties": False,
            },
        },
        {
            "type": "namespace",
            "name": "notes",
            "description": "Notes",
            "tools": [{"type": "function", "name": "add_note", "parameters": {"type": "object"}}],
        },
        {"type": "web_search", "external_web_access": False},
    ]

    def message(role: str, *texts: str) -> dict[str, object]:
        parts = [{"type": "input_text", "text": text} for text in texts]
        return {"type": "message", "role": role, "content": parts}

    body: dict[str, Any] = {
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-key",
        "client_metadata": {"originator": "test"},
    }
    given = [
        message("developer", "You are a coding agent.", "Sandbox: read only."),
        message("developer", "Be brief."),
        message("user", "<environment>linux</environment>"),
        message("user", "what is here?"),
    ]
    final = check_stream(_stream(server, given, **body))
    assert final is not None
    assert final["prompt_cache_key"] == "0199-key"
    assert [tool["type"] for tool in final["tools"]] == ["function", "namespace"]
    first = _last_prompt(shared_stub)
    assert "[SYSTEM_PROMPT]You are a coding agent.\nSandbox: read only.\n\nBe brief." in first
    assert "[INST]<environment>linux</environment>\n\nwhat is here?[/INST]" in first
    assert "add_note" in first
    assert "web_search" not in first
    replayed = [
        *given,
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {
            "type": "function_call",
            "name": "shell_command",
            "arguments": '{"command":"ls"}',
            "call_id": "abcdefghi",
        },
        {"type": "function_call_output", "call_id": "abcdefghi", "output": "a.txt"},
    ]
    check_stream(_stream(server, replayed, **body))
    assert _last_prompt(shared_stub) == (
        first + '[TOOL_CALLS]shell_command[ARGS]{"command": "ls"}</s>'
        "[TOOL_RESULTS]a.txt[/TOOL_RESULTS]"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_overflow_is_the_400_that_clients_know(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="overflow", stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    assert "maximum context length is 2048 tokens" in caught.value.message
    assert "resulted in 9000 tokens" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model_is_the_404_that_clients_know(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="gpt-5", input="hi", stream=stream)
    assert caught.value.code == "model_not_found"


def test_full_queue_is_a_429_with_a_time(server: Server) -> None:
    response = _post(server, "crowded")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "invalid_value", "input"),
    ({"input": []}, "empty_input", "input"),
    ({"input": ["x"]}, "invalid_value", "input[0]"),
    ({"input": [{"type": "message", "role": "user", "content": [{"type": "input_image"}]}]},
     "unsupported_content", "input[0].content[0]"),
    ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
    ({"text": {"format": {"type": "json_schema"}}}, "invalid_value", "text.format.schema"),
    ({"tools": [{"type": "function"}]}, "invalid_value", "tools[0]"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"metadata": {"a": 1}}, "invalid_value", "metadata.a"),
    ({"logit_bias": {"4096": 1}}, "invalid_value", "logit_bias"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "param"), BAD)
def test_bad_requests_say_what_is_wrong(
    server: Server, fields: dict[str, Any], code: str, param: str
) -> None:
    response = _post(server, "hi", **fields)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)


def test_leaving_a_stream_cancels_it(server: Server, shared_stub: StubEngine) -> None:
    before = len([line for line in shared_stub.lines() if line.startswith("cancel")])
    body = {"model": "tiny", "input": "long", "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=20) as response:
        seen = next(response.iter_lines())
        assert seen == "event: response.created"
    for _ in range(100):
        if len([line for line in shared_stub.lines() if line.startswith("cancel")]) > before:
            return
        httpx.get(f"{server.url}/livez")
    pytest.fail("the engine was not told")


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    path: Path = convert_pocket(tmp_path_factory.mktemp("pocket"))
    config = config_for(path)
    config = replace(config, engine=replace(config.engine, model_id="pocket"))
    with (
        running(config) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        yield client


def _tool(name: str, about: str, /, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "name": name, "description": about, "parameters": schema}


TASKS: tuple[tuple[str, list[Any], tuple[tuple[str, dict[str, str], str], ...]], ...] = (
    (
        "Find report.txt, count its lines and send the number to Grace.",
        [
            _tool("count_lines", "Count the lines of a file", path="path of the file"),
            _tool("find_file", "Find a file by name and return its path", name="file name"),
            _tool("send_message", "Send a text message", to="name or address", text="text to send"),
        ],
        (
            ("find_file", {"name": "report.txt"}, "/docs/report.txt"),
            ("count_lines", {"path": "/docs/report.txt"}, "42"),
            ("send_message", {"to": "Grace", "text": "42 lines"}, "sent"),
        ),
    ),
    (
        "Check nginx, restart it and tell Linus.",
        [
            _tool("restart_service", "Restart a service", service="service name"),
            _tool("send_message", "Send a text message", to="name or address", text="text to send"),
            _tool("service_status", "State of a service", service="service name"),
        ],
        (
            ("service_status", {"service": "nginx"}, "failed"),
            ("restart_service", {"service": "nginx"}, "running"),
            ("send_message", {"to": "Linus", "text": "nginx was failed, now running"}, "sent"),
        ),
    ),
)


def _play(api: openai.OpenAI, task: Any, *, by_id: bool) -> bool:
    """Return whether the model made exactly the task's calls, in order, and then answered."""
    user, tools, steps = task
    items: Any = [{"role": "user", "content": user}]
    previous: Any = openai.omit
    for name, arguments, result in steps:
        with api.responses.stream(
            model="pocket", input=items, tools=tools, temperature=0, max_output_tokens=96,
            previous_response_id=None if previous is openai.omit else previous,
        ) as stream:  # fmt: skip
            answer = stream.get_final_response()
        calls = [item for item in answer.output if item.type == "function_call"]
        if [(c.name, json.loads(c.arguments)) for c in calls] != [(name, arguments)]:
            return False
        output = {"type": "function_call_output", "call_id": calls[0].call_id, "output": result}
        if by_id:
            items, previous = [output], answer.id
        else:
            items += [*(item.to_dict() for item in answer.output), output]
    last = api.responses.create(
        model="pocket", input=items, tools=tools, temperature=0, max_output_tokens=96,
        previous_response_id=previous,
    )  # fmt: skip
    return last.status == "completed" and bool(last.output_text)


def test_the_embedded_model_chains_three_calls(pocket: openai.OpenAI) -> None:
    finished = [_play(pocket, task, by_id=by_id) for task in TASKS for by_id in (False, True)]
    assert any(finished), finished
    # Both ways of saying what was said before are the same prompt.
    assert finished[0::2] == finished[1::2]


def test_the_embedded_model_keeps_a_schema(pocket: openai.OpenAI) -> None:
    answer = pocket.responses.parse(
        model="pocket", input="Where is Bern?", text_format=City, max_output_tokens=200
    )
    assert isinstance(answer.output_parsed, City) or answer.status == "incomplete"


def test_the_second_turn_finds_the_first_in_the_cache(pocket: openai.OpenAI) -> None:
    first = pocket.responses.create(
        model="pocket", input="Say hello. " * 10, max_output_tokens=8, temperature=0
    )
    second = pocket.responses.create(
        model="pocket", input="Again.", previous_response_id=first.id, max_output_tokens=4
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens
