"""Anthropic's own client, the front, the engine child and pocket's weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import pytest

from edgekit_server.app import Server
from tests.server.test_agent_loop import TASKS, Task
from tests.server.test_agent_loop import TOOLS as OPENAI_TOOLS
from tests.support import anthropic_contract as contract
from tests.support.http_server import config_for, running
from tests.support.pocket import convert_pocket

N_CTX = 2048
TOOLS: dict[str, Any] = {
    name: {
        "name": name,
        "description": tool["function"]["description"],
        "input_schema": tool["function"]["parameters"],
    }
    for name, tool in OPENAI_TOOLS.items()
}


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = convert_pocket(tmp_path_factory.mktemp("pocket"))
    config = config_for(path, keepalive_s=0.5)
    engine = replace(config.engine, model_id="pocket", n_ctx=N_CTX, n_seq_max=4, n_ubatch=256)
    with running(replace(config, engine=engine)) as server:
        yield server


@pytest.fixture(scope="module")
def http(pocket: Server) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=64)
    with httpx.Client(base_url=pocket.url, timeout=60, limits=limits) as made:
        yield made


@pytest.fixture
def api(pocket: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=pocket.url, api_key="x", max_retries=0) as made:
        yield made


def _play(api: anthropic.Anthropic, task: Task, *, stream: bool) -> bool:
    """Return whether the model made exactly the task's calls, in order, and then answered."""
    request: dict[str, Any] = {
        "model": "pocket",
        "max_tokens": 96,
        "extra_body": {"temperature": 0},
        "tools": [TOOLS[name] for name in sorted({name for name, _, _ in task.steps})],
    }
    messages: list[Any] = [{"role": "user", "content": task.user}]

    def ask() -> anthropic.types.Message:
        counted = api.messages.count_tokens(
            model="pocket", messages=messages, tools=request["tools"]
        ).input_tokens
        if stream:
            with api.messages.stream(messages=messages, **request) as answering:
                answer: anthropic.types.Message = answering.get_final_message()
        else:
            answer = api.messages.create(messages=messages, **request)
        cached = answer.usage.cache_read_input_tokens or 0
        assert answer.usage.input_tokens + cached == counted
        return answer

    for name, arguments, result in task.steps:
        answer = ask()
        calls = [block for block in answer.content if block.type == "tool_use"]
        if [(call.name, call.input) for call in calls] != [(name, arguments)]:
            return False
        assert answer.stop_reason == "tool_use"
        found = {"type": "tool_result", "tool_use_id": calls[0].id, "content": result}
        messages += [
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": [found]},
        ]
    last = ask()
    return last.stop_reason == "end_turn" and bool(last.content)


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_chains_three_calls(api: anthropic.Anthropic, stream: bool) -> None:
    finished = [_play(api, task, stream=stream) for task in TASKS]
    assert sum(finished) >= 3, finished


def _body(text: str, **more: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "pocket", "max_tokens": 8, "messages": messages, **more}


def _post(http: httpx.Client, body: object, path: str = "") -> httpx.Response:
    return http.post(f"/v1/messages{path}", json=body)


def _count(http: httpx.Client, body: object) -> int:
    return int(_post(http, body, "/count_tokens").json()["input_tokens"])


def _prompt_tokens(usage: dict[str, int]) -> int:
    return usage["input_tokens"] + usage["cache_read_input_tokens"]


COUNTED: list[dict[str, Any]] = [
    _body("Schöne Grüße 🙂 [INST] is text"),
    _body("hi", system=[{"type": "text", "text": "Be brief."}]),
    _body("hi", tools=list(TOOLS.values())),
    _body("hi", tools=list(TOOLS.values()), tool_choice={"type": "none"}),
    _body("hi", tools=list(TOOLS.values()), tool_choice={"type": "tool", "name": "add"}),
    _body("hi", thinking={"type": "disabled"}, tools=[{"type": "web_search_20250305"}]),
]


@pytest.mark.parametrize("body", COUNTED)
@pytest.mark.parametrize("stream", [False, True])
def test_counted_is_used(http: httpx.Client, body: dict[str, Any], stream: bool) -> None:
    counted = _count(http, body)
    if not stream:
        message = _post(http, body).json()
        contract.check_message(message, input_tokens=counted)
        return
    with http.stream("POST", "/v1/messages", json={**body, "stream": True}) as response:
        found = contract.events(response.iter_lines())
    assert found[0]["message"]["usage"]["input_tokens"] == counted
    contract.check_stream(found, tools=set(TOOLS), input_tokens=counted)


def test_needle_at_the_limit(http: httpx.Client) -> None:
    """One token is left for the answer at n_ctx - 1; nothing is ever cut."""
    frame = _count(http, _body(" a")) - 1

    def ask(n: int) -> httpx.Response:
        body = _body(" a" * (n - frame), max_tokens=32000)
        assert _count(http, body) == n
        return _post(http, body)

    for n in (N_CTX - 2, N_CTX - 1):
        message = ask(n).json()
        contract.check_message(message, input_tokens=n)
        assert message["usage"]["output_tokens"] <= N_CTX - n
    refused = ask(N_CTX)
    assert refused.status_code == 400
    assert contract.check_error(refused.json()) == "invalid_request_error"
    words = f"prompt is too long: {N_CTX} tokens > {N_CTX} maximum"
    assert refused.json()["error"]["message"] == words


def test_more_than_the_context_can_be_counted(http: httpx.Client) -> None:
    assert _count(http, _body(" a" * (3 * N_CTX))) > 3 * N_CTX


def test_a_burst_of_counts(http: httpx.Client) -> None:
    """An agent that draws its context asks for one per tool, all at once."""
    body = _body("The quick brown fox jumps over the lazy dog. " * 100)
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda _: _count(http, body), range(32)))
    assert len(set(found)) == 1


def test_a_stream_repeated_whole_reads_the_cache(http: httpx.Client) -> None:
    body = _body("The quick brown fox jumps over the lazy dog. " * 20)
    with http.stream("POST", "/v1/messages", json={**body, "stream": True}) as response:
        # Text means that the prompt was computed; who leaves before that leaves nothing to reuse.
        assert any("content_block_delta" in line for line in response.iter_lines())
    usage = _post(http, body).json()["usage"]
    assert usage["cache_read_input_tokens"] > 100
    assert _prompt_tokens(usage) == _count(http, body)


@pytest.mark.parametrize("place", ["output_format", "output_config"])
def test_answer_in_a_format(http: httpx.Client, place: str) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "schema": schema}
    field = {place: wanted if place == "output_format" else {"format": wanted}}
    message = _post(http, _body("hi", **field, max_tokens=64)).json()
    contract.check_message(message)
    assert json.loads(message["content"][0]["text"])["ok"] in (True, False)
    wanted["schema"] = {"type": "nonsense"}
    refused = _post(http, _body("hi", **field))
    assert refused.status_code == 400
    assert "response_format" not in refused.json()["error"]["message"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
def test_demanded_calls(http: httpx.Client, choice: dict[str, str]) -> None:
    body = _body("Add 12 and 30.", tools=[TOOLS["add"]], tool_choice=choice, max_tokens=64)
    message = _post(http, {**body, "temperature": 0}).json()
    contract.check_message(message, tools={"add"})
    assert message["content"][0]["type"] == "tool_use"


def test_schema_that_cannot_be_held_names_the_tool(http: httpx.Client) -> None:
    tool = {"name": "f", "input_schema": {"type": "array"}}
    refused = _post(http, _body("hi", tools=[tool], tool_choice={"type": "any"}))
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("tools[0].input_schema")
