"""Anthropic's dialect over real HTTP: its own client and raw streams, against the stub."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from edgekit_server import client as client_module
from edgekit_server.app import Server
from tests.support import anthropic_contract as contract
from tests.support.http_server import config_for, running
from tests.support.stub_engine import Rule, StubEngine

TOOLS: list[Any] = [
    {"name": "get_weather", "description": "Weather", "input_schema": {"type": "object"}},
    {"name": "other", "input_schema": {"type": "object"}},
]
NAMES = {"get_weather", "other"}


@pytest.fixture
def api(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as made:
        yield made


def _body(text: str, **more: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "tiny", "max_tokens": 1000, "messages": messages, **more}


def _post(server: Server, body: object, path: str = "/v1/messages", **more: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=20, verify=False, **more)


def _stream(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    url = f"{server.url}/v1/messages?beta=true"
    with httpx.stream(
        "POST", url, json={**body, "stream": True}, timeout=20, verify=False
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        return contract.events(response.iter_lines())


def _prompt(stub: StubEngine) -> str:
    line = [line for line in stub.lines() if line.startswith("generate ")][-1]
    return "".join(piece[0] for piece in json.loads(line.removeprefix("generate "))[2])


def _same(message: dict[str, Any]) -> dict[str, Any]:
    """Return what two answers to one request share."""
    content = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return {**message, "id": "", "content": content}


@pytest.mark.parametrize(
    ("text", "reason", "kinds"),
    [
        ("hi", "end_turn", ["text"]),
        ("call once", "tool_use", ["tool_use"]),
        ("call twice", "tool_use", ["text", "tool_use", "tool_use"]),
        ("torn call", "end_turn", ["text"]),
        ("cut call", "max_tokens", ["text"]),
        ("think", "end_turn", ["thinking", "text"]),
        ("limit", "max_tokens", ["text"]),
        ("split character", "end_turn", ["text"]),
    ],
)
def test_stream_and_whole_answer(server: Server, text: str, reason: str, kinds: list[str]) -> None:
    found = _stream(server, _body(text, tools=TOOLS))
    message = contract.check_stream(found, tools=NAMES)
    assert message["stop_reason"] == reason
    assert [block["type"] for block in message["content"]] == kinds
    assert message["usage"]["cache_read_input_tokens"] == 3
    answer = _post(server, _body(text, tools=TOOLS)).json()
    contract.check_message(answer, tools=NAMES)
    assert _same(answer) == _same(message)


def test_silence_is_filled_with_pings(server: Server) -> None:
    found = [event["type"] for event in _stream(server, _body("silent"))]
    assert found[0] == "message_start"
    assert found.count("ping") >= 2


def test_a_call_in_the_making_is_no_silence_for_the_client(gguf: Path, tmp_path: Path) -> None:
    """Nothing of a call is shown until it is whole, which may take minutes."""
    say = [["[TOOL_CALLS]", True], ["other", False], ["[ARGS]", True], ['{"x": "', False]]
    say += [["a", False]] * 20 + [['"}', False]]
    stub = StubEngine([Rule("slow", say, pause_s=0.02)], tmp_path / "log")
    with running(config_for(gguf, keepalive_s=0.1), stub.spawn) as server:
        found = _stream(server, _body("slow", tools=TOOLS))
    message = contract.check_stream(found, tools=NAMES)
    assert message["content"][0]["input"] == {"x": "a" * 20}
    assert [event["type"] for event in found].count("ping") >= 2


def test_stop_sequence_is_named(server: Server) -> None:
    message = contract.check_stream(
        _stream(server, _body("count", stop_sequences=["zzz", "three"]))
    )
    assert message["content"] == [{"type": "text", "text": "one two "}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "three")


def test_thoughts_can_be_hidden(server: Server) -> None:
    body = _body("think", thinking={"type": "adaptive", "display": "omitted"})
    message = contract.check_stream(_stream(server, body))
    assert [b.get("thinking") for b in message["content"]] == ["", None]
    assert _same(_post(server, body).json()) == _same(message)


def test_one_call_only(server: Server) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    message = _post(server, _body("call twice", tools=TOOLS, tool_choice=choice)).json()
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]
    assert message["stop_reason"] == "tool_use"


def test_max_tokens_reach_the_engine(server: Server, shared_stub: StubEngine) -> None:
    _post(server, _body("hi", max_tokens=32000))
    line = [line for line in shared_stub.lines() if line.startswith("generate ")][-1]
    assert json.loads(line.removeprefix("generate "))[1] == 32000
    assert _post(server, _body("hi", max_tokens=10**30)).status_code == 200


def test_official_client_whole(api: anthropic.Anthropic) -> None:
    answer = api.messages.create(**_body("call twice", tools=TOOLS))
    assert [block.type for block in answer.content] == ["text", "tool_use", "tool_use"]
    call = answer.content[1]
    assert isinstance(call, anthropic.types.ToolUseBlock)
    assert (call.name, call.input) == ("get_weather", {"city": "Bern"})
    assert answer.stop_reason == "tool_use"
    assert answer.usage.cache_read_input_tokens == 3
    assert answer.usage.output_tokens == 13


def test_official_client_streams(api: anthropic.Anthropic) -> None:
    with api.messages.stream(**_body("call twice", tools=TOOLS)) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds.count("content_block_stop") == 3
    assert [b.type for b in final.content] == ["text", "tool_use", "tool_use"]
    assert isinstance(final.content[2], anthropic.types.ToolUseBlock)
    assert final.content[2].input == {"city": "Bern"}
    assert final.usage.cache_read_input_tokens == 3
    with api.messages.stream(**_body("think")) as stream:
        thought, answer = stream.get_final_message().content
    assert isinstance(thought, anthropic.types.ThinkingBlock)
    assert (thought.thinking, bool(thought.signature)) == ("hm", True)
    assert isinstance(answer, anthropic.types.TextBlock)
    assert answer.text == "yes"


def test_call_goes_back_as_the_model_wrote_it(
    api: anthropic.Anthropic, shared_stub: StubEngine
) -> None:
    first = api.messages.create(**_body("call once", tools=TOOLS))
    call = first.content[0]
    assert isinstance(call, anthropic.types.ToolUseBlock)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sun", "is_error": True}
    messages: list[Any] = [
        {"role": "user", "content": "call once"},
        {"role": "assistant", "content": [block.model_dump() for block in first.content]},
        {"role": "user", "content": [result]},
    ]
    api.messages.create(model="tiny", max_tokens=10, messages=messages, tools=TOOLS)
    assert _prompt(shared_stub).endswith(
        '[INST]call once[/INST][TOOL_CALLS]get_weather[ARGS]{"city": "Bern"}</s>'
        "[TOOL_RESULTS]Error: sun[/TOOL_RESULTS]"
    )


def _agent_body(turn: int) -> dict[str, Any]:
    """A coding agent's request in shape and fields, at its first and at its second turn."""
    marked = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    note = "The working directory is /srv/app."
    system: list[Any] = [
        {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={turn:05x};"},
        {"type": "text", "text": "You are an agent.", **marked},
        {"type": "text", "text": "Use the tools.", **marked},
    ]
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "<env>linux</env>"},
                                     {"type": "text", "text": "Weather in Bern?", **marked}]},
        {"role": "system", "content": [{"type": "text", "text": note}] if turn == 1 else note},
    ]  # fmt: skip
    if turn == 2:
        call = {"type": "tool_use", "id": "toolu_abcDEF123", "name": "get_weather", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "toolu_abcDEF123",
                  "content": [{"type": "text", "text": "sun"}], **marked}  # fmt: skip
        thought = {"type": "thinking", "thinking": "hm", "signature": "edgekit"}
        messages += [
            {"role": "assistant", "content": [thought, call]},
            {"role": "user", "content": [result]},
        ]
    return {
        "model": "alias",
        "max_tokens": 32000,
        "stream": True,
        "system": system,
        "messages": messages,
        "tools": [
            {**TOOLS[0], "eager_input_streaming": True},
            {"name": "late", "description": "x", "input_schema": {"type": "object"},
             "defer_loading": True},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "thinking": {"type": "adaptive", "display": "summarized"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "metadata": {"user_id": "{\"device_id\":\"0\"}"},
    }  # fmt: skip


def test_agent_s_requests_share_one_prefix(server: Server, shared_stub: StubEngine) -> None:
    """The line that changes with every request is gone, and a note may change its form."""
    prompts = []
    for turn in (1, 2):
        contract.check_stream(_stream(server, _agent_body(turn)))
        prompts.append(_prompt(shared_stub))
    first, second = prompts
    assert second.startswith(first)
    assert "cch=" not in second
    assert first.startswith(
        "<s>[SYSTEM_PROMPT]You are an agent.\nUse the tools.\n\n"
        "The working directory is /srv/app.[/SYSTEM_PROMPT]"
    )
    assert first.endswith("[INST]<env>linux</env>\nWeather in Bern?[/INST]")
    assert '"late"' in first
    assert "web_search" not in first
    tail = "[TOOL_CALLS]get_weather[ARGS]{}</s>[TOOL_RESULTS]sun[/TOOL_RESULTS]"
    assert second.removeprefix(first).endswith(tail)


@pytest.mark.parametrize(
    ("body", "status", "kind", "says"),
    [
        (_body("hi", model="other"), 404, "not_found_error", "'other' does not exist"),
        (_body("overflow"), 400, "invalid_request_error", "9000 tokens > 2048 maximum"),
        (_body("crowded"), 429, "rate_limit_error", "queue_full"),
        (_body("gibberish"), 400, "invalid_request_error", "tokenizer_failed"),
        ({"messages": []}, 400, "invalid_request_error", "messages: "),
        ({"model": "tiny"}, 400, "invalid_request_error", "messages: "),
        (_body("hi", max_tokens=0), 400, "invalid_request_error", "max_tokens: "),
        (_body("hi", temperature=-1), 400, "invalid_request_error", "temperature: "),
        (_body("hi", tool_choice={"type": "any"}), 400, "invalid_request_error", "tool_choice"),
        (
            _body("hi", tools=TOOLS, tool_choice={"type": "tool", "name": "nope"}),
            400,
            "invalid_request_error",
            "'nope'",
        ),
        (
            _body("hi", tools=[{"name": "f" * 300}]),
            400,
            "invalid_request_error",
            "tools[0] needs a name",
        ),
        (
            _body("hi", messages=[{"role": "user", "content": [{"type": "image"}]}]),
            400,
            "invalid_request_error",
            "messages[0].content[0] is of type 'image'",
        ),
        (
            _body("hi", messages=[{"role": "assistant", "content": "{"}]),
            400,
            "invalid_request_error",
            "must end with a user message",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_come_before_any_stream(
    server: Server, body: dict[str, Any], status: int, kind: str, says: str, stream: bool
) -> None:
    response = _post(server, {**body, "stream": stream})
    assert response.status_code == status
    assert contract.check_error(response.json()) == kind
    assert says in response.json()["error"]["message"]


def test_overflow_has_the_words_that_agents_parse(api: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        api.messages.create(**_body("overflow"))
    assert caught.value.body == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "prompt is too long: 9000 tokens > 2048 maximum",
        },
    }


def test_broken_json_and_wrong_paths(server: Server) -> None:
    url = f"{server.url}/v1/messages"
    for response, status in (
        (httpx.post(url, content=b"{"), 400),
        (httpx.get(url), 405),
        (httpx.post(f"{url}/batches", json={}), 404),
    ):
        assert response.status_code == status
        contract.check_error(response.json())


@pytest.mark.parametrize("path", ["/messages", "/v1/v1/messages", "//v1//messages/"])
def test_other_spellings_of_the_path(server: Server, path: str) -> None:
    assert _post(server, _body("hi"), path).status_code == 200


def test_keys(gguf: Path, stub: StubEngine) -> None:
    with running(config_for(gguf, api_keys=("secret",)), stub.spawn) as server:
        refused = _post(server, _body("hi"))
        assert refused.status_code == 401
        assert contract.check_error(refused.json()) == "authentication_error"
        for options in ({"api_key": "secret"}, {"api_key": None, "auth_token": "secret"}):
            with anthropic.Anthropic(base_url=server.url, max_retries=0, **options) as api:
                assert api.messages.create(**_body("hi")).content
        with (
            anthropic.Anthropic(base_url=server.url, max_retries=0, api_key="wrong") as api,
            pytest.raises(anthropic.AuthenticationError),
        ):
            api.messages.create(**_body("hi"))


def test_unknown_model_through_the_official_client(api: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        api.messages.create(**_body("hi", model="claude"))


@pytest.fixture
def faulty(stub: StubEngine, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(client_module, "STOP_PATIENCE_S", 0.3)
    with running(config_for(gguf, keepalive_s=0.1), stub.spawn) as server:
        yield server


def test_stream_of_an_engine_that_dies_ends_with_an_error(faulty: Server) -> None:
    found = _stream(faulty, _body("dies later"))
    contract.check_stream(found, torn=True)
    assert found[-1]["error"]["type"] == "overloaded_error"
    assert [e["delta"]["text"] for e in found if "delta" in e] == ["a", "b"]
    # An agent repeats a stream that broke, this time whole.
    whole = _post(faulty, _body("hi")).json()
    assert whole["content"] == [{"type": "text", "text": "hello"}]
    with (
        anthropic.Anthropic(base_url=faulty.url, api_key="x", max_retries=0) as api,
        pytest.raises(anthropic.APIStatusError, match="failed this request"),
        api.messages.stream(**_body("fails")) as stream,
    ):
        stream.until_done()


def test_whole_answer_of_an_engine_that_dies(faulty: Server) -> None:
    response = _post(faulty, _body("dies later"))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert contract.check_error(response.json()) == "overloaded_error"


def test_client_that_leaves_frees_the_engine(server: Server) -> None:
    body = {**_body("long"), "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/messages", json=body, timeout=20) as response:
        lines = response.iter_lines()
        while "text_delta" not in next(lines):
            pass
    end = time.monotonic() + 2
    while _in_flight(server):
        assert time.monotonic() < end
        time.sleep(0.01)


def _in_flight(server: Server) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("edgekit_requests_in_"))
