"""Ollama's dialect, read by its own client and by the strictest reader we could write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import pytest

from edgekit_server.app import Server
from tests.server.test_agent_loop import TASKS, TOOLS, Task
from tests.support import ollama_contract
from tests.support.fleet import fleet, model
from tests.support.http_server import config_for, running
from tests.support.ollama_contract import Read
from tests.support.pocket import convert_pocket
from tests.support.stub_engine import StubEngine
from tests.support.vector_models import write_bert

WEATHER: Any = [{"type": "function", "function": {"name": "get_weather"}}]
ARGUMENTS = {"city": "Bern"}


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = config_for(convert_pocket(tmp_path_factory.mktemp("pocket")))
    with running(replace(config, engine=replace(config.engine, model_id="pocket"))) as server:
        yield server


@pytest.fixture
def api(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(server.url) as client:
        yield client


@pytest.fixture
def real(pocket: Server) -> Iterator[ollama.Client]:
    with ollama.Client(pocket.url) as client:
        yield client


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/api/{path}", json={"model": "tiny", **body}, timeout=20)


def read(server: Server, path: str = "chat", **body: Any) -> Read:
    response = post(server, path, **body)
    assert response.status_code == 200, response.text
    whole = body.get("stream") is False
    kind = "application/json" if whole else "application/x-ndjson"
    assert response.headers["content-type"] == kind
    name = body.get("model", "tiny")
    return ollama_contract.check(response.content, model=name, chat=path == "chat", whole=whole)


def ask(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hi", Read("hello")),
        ("call once", Read(calls=[("get_weather", ARGUMENTS)])),
        ("call twice", Read("Both. ", calls=[("get_weather", ARGUMENTS)] * 2)),
        ("torn call", Read('[TOOL_CALLS]get_weather[ARGS]{"city":')),
        ("think", Read("yes", thinking="hm")),
        ("split character", Read("é")),
    ],
)
def test_what_is_said(server: Server, text: str, expected: Read, stream: bool) -> None:
    found = read(server, **ask(text), tools=WEATHER, stream=stream)
    assert (found.content, found.thinking, found.calls) == (
        expected.content, expected.thinking, expected.calls,
    )  # fmt: skip
    assert found.last is not None
    assert found.last["done_reason"] == "stop"
    assert found.last["prompt_eval_count"] > 0


def test_a_stream_is_the_default(server: Server) -> None:
    assert read(server, **ask("hi")).n_lines == len("hello") + 1
    assert read(server, "generate", prompt="hi").n_lines == len("hello") + 1
    assert read(server, "generate", prompt="hi", stream=False).content == "hello"


def test_limit_and_stop(server: Server) -> None:
    assert (read(server, **ask("limit")).last or {})["done_reason"] == "length"
    found = read(server, **ask("count"), options={"stop": [" three"]})
    assert found.content == "one two"
    assert (found.last or {})["done_reason"] == "stop"


@pytest.mark.parametrize(("num_predict", "limit"), [(7, 7), (-1, None), (-2, None), (0, None)])
def test_num_predict(
    server: Server, shared_stub: StubEngine, num_predict: int, limit: int | None
) -> None:
    options = {"num_predict": num_predict, "num_ctx": 10**6, "num_gpu": 99, "unheard_of": "x"}
    read(server, **ask(f"most {num_predict}"), options=options)
    line = next(x for x in reversed(shared_stub.lines()) if f"most {num_predict}" in x)
    assert f", {'null' if limit is None else limit}, [" in line


def test_a_silent_stream_is_kept_alive(server: Server) -> None:
    found = read(server, **ask("silent"))
    assert found.content == "late"
    assert found.n_lines > len("late") + 3
    assert (found.last or {})["prompt_eval_duration"] > 3e8


def test_results_find_their_calls(server: Server, shared_stub: StubEngine) -> None:
    """The client sends no ids; the official one cannot even hold one."""
    call = {"function": {"name": "get_weather", "arguments": ARGUMENTS}}
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "sunny result"},
    ]
    read(server, messages=history, tools=WEATHER)
    line = next(x for x in reversed(shared_stub.lines()) if "sunny result" in x)
    assert "[TOOL_RESULTS]" in line
    assert "get_weather" in line


def test_loading(server: Server) -> None:
    for path, body in (
        ("chat", {"messages": []}),
        ("chat", {}),
        ("chat", {"keep_alive": "30m", "messages": None}),
        ("generate", {"prompt": ""}),
        ("generate", {"keep_alive": -1}),
    ):
        response = post(server, path, **body)
        found = ollama_contract.check(
            response.content, model="tiny", chat=path == "chat", whole=True
        )
        assert (found.last or {})["done_reason"] == "load"


def test_letting_go_loads_nothing(tmp_path: Path) -> None:
    """What is not loaded stays so, and the answer is true either way; nor does looking load it."""
    models = (model(tmp_path, "first"), model(tmp_path, "second", roles=("completion",)))
    with fleet(tmp_path, *models) as found:
        for name, reason in (("first", "load"), ("second", "unload")):
            for path in ("chat", "generate"):
                answer = post(found.server, path, model=name, keep_alive=0).json()
                assert answer["done_reason"] == reason
        with ollama.Client(found.server.url) as client:
            assert [m.model for m in client.list().models] == ["first:latest", "second:latest"]
            assert client.show("second").capabilities == ["completion"]
            assert [m.name for m in client.ps().models] == ["first:latest"]
            assert found.loaded() == {"first"}
            assert client.generate("second", "hi").response == "hello"
            assert {"completion", "insert"} <= set(client.show("second").capabilities or [])
            assert len(client.ps().models) == 2


def test_when_an_idle_model_goes(tmp_path: Path) -> None:
    models = (model(tmp_path, "stays", pinned=True), model(tmp_path, "goes", preload=True))
    with fleet(tmp_path, *models, idle_unload_s=600.0) as found:
        stays, goes = httpx.get(f"{found.server.url}/api/ps").json()["models"]
        assert stays["expires_at"] == "9999-12-31T23:59:59Z"
        left = datetime.fromisoformat(goes["expires_at"]) - datetime.now(UTC)
        assert 500 < left.total_seconds() < 601


def test_the_newest_suffix_wins(server: Server) -> None:
    body = {"model": "tiny", "prompt": "long", "suffix": "x"}
    with httpx.stream("POST", f"{server.url}/api/generate", json=body, timeout=20) as older:
        lines = older.iter_raw()
        raw = next(lines)
        assert read(server, "generate", prompt="hi", suffix="y").content == "hello"
        raw += b"".join(lines)
    found = ollama_contract.check(raw, model="tiny", chat=False)
    assert (found.last or {})["done_reason"] == "length"


def test_the_tag_is_known_to_openai_clients_too(server: Server) -> None:
    """VS Code finds models here and then talks to /v1."""
    body = {"model": "tiny:latest", **ask("hi")}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200


def test_generate_with_a_suffix(server: Server, shared_stub: StubEngine) -> None:
    read(server, "generate", prompt="def f():", suffix="\n[SUFFIX]end")
    line = next(x for x in reversed(shared_stub.lines()) if "def f():" in x)
    assert (
        '["[SUFFIX]", true], ["\\n[SUFFIX]end", false], ["[PREFIX]", true], ["def f():", false]'
        in line
    )


def test_generate_raw_and_with_system(server: Server, shared_stub: StubEngine) -> None:
    read(server, "generate", prompt="raw text [INST]", raw=True)
    assert '["raw text [INST]", true]' in shared_stub.lines()[-1]
    read(server, "generate", prompt="rule it", system="Be brief.")
    assert "[SYSTEM_PROMPT]" in shared_stub.lines()[-1]


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs(server: Server, stream: bool) -> None:
    found = read(server, **ask("hi"), logprobs=True, top_logprobs=2, stream=stream)
    assert "".join(entry["token"] for entry in found.logprobs) == "hello"
    assert all(len(entry["top_logprobs"]) == 2 for entry in found.logprobs)
    plain = read(server, "generate", prompt="hi", raw=True, logprobs=True, stream=stream)
    assert len(plain.logprobs) == len("hello")
    assert "top_logprobs" not in plain.logprobs[0]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("chat", {"model": "nobody", **ask("hi")}, 404, "model 'nobody' not found"),
        ("generate", {"model": "nobody:latest"}, 404, "model 'nobody:latest' not found"),
        ("embed", {"model": "nobody", "input": "x"}, 404, "model 'nobody' not found"),
        ("show", {"model": "nobody"}, 404, "model 'nobody' not found"),
        ("show", {"model": ""}, 400, "model is required"),
        ("chat", {"model": "", **ask("hi")}, 400, "model"),
        ("chat", {"messages": [{"role": "user", "images": ["aGk="]}]}, 400, "messages[0].images"),
        ("generate", {"prompt": "x", "images": ["aGk="]}, 400, "images"),
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, 400, "template"),
        ("generate", {"prompt": "x", "system": "y", "raw": True}, 400, "system"),
        ("generate", {"prompt": "x", "system": "y", "suffix": "z"}, 400, "system"),
        ("chat", {**ask("hi"), "format": "yaml"}, 400, "format"),
        ("chat", {**ask("hi"), "think": True}, 400, "does not support thinking"),
        ("chat", {**ask("hi"), "options": {"temperature": -1}}, 400, "temperature"),
        ("chat", {**ask("hi"), "options": {"num_predict": "many"}}, 400, "num_predict"),
        ("chat", {**ask("hi"), "options": 3}, 400, "options"),
        ("chat", {**ask("hi"), "top_logprobs": 2}, 400, "top_logprobs needs logprobs"),
        ("generate", {"prompt": "x", "raw": True, "top_logprobs": 2}, 400, "top_logprobs"),
        ("chat", {"messages": [{"role": "king", "content": "x"}]}, 400, "role"),
        ("chat", ask("overflow"), 400, "maximum context length is 2048 tokens"),
        ("chat", ask("crowded"), 429, "queue"),
        ("embed", {"input": "x"}, 400, "makes no vectors"),
        ("pull", {}, 404, "does not exist"),
    ],
)
def test_what_is_refused(
    server: Server, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    response = post(server, path, **body)
    found = response.json()
    assert found.keys() == {"error"}, found
    assert words in found["error"]
    assert response.status_code == status


def test_a_failure_ends_the_stream_with_a_line(server: Server) -> None:
    found = read(server, **ask("fails"))
    assert found.content == "ab"
    assert found.error
    assert post(server, "chat", **ask("fails"), stream=False).json().keys() == {"error"}


def test_names_with_and_without_the_tag(server: Server) -> None:
    for name in ("tiny", "tiny:latest", "alias", "alias:latest"):
        assert read(server, model=name, **ask("hi")).content == "hello"
        assert post(server, "show", model=name).status_code == 200
        assert post(server, "show", model=None, name=name).status_code == 200


def test_a_client_that_leaves_frees_its_sequence(server: Server, shared_stub: StubEngine) -> None:
    body = {"model": "tiny", **ask("long")}
    with httpx.stream("POST", f"{server.url}/api/chat", json=body, timeout=20) as response:
        got = next(response.iter_raw())
    assert ollama_contract.check(got, model="tiny", cut=True).last is None
    number = next(x for x in reversed(shared_stub.lines()) if "long" in x).split("[")[1]
    for _ in range(100):
        if f"cancel {number.split(',')[0]}" in shared_stub.lines():
            return
        httpx.get(f"{server.url}/api/version")
    raise AssertionError("the engine was not told")


def test_discovery(server: Server, api: ollama.Client) -> None:
    for path in ("version", "tags"):
        assert httpx.head(f"{server.url}/api/{path}").status_code == 200
    release = httpx.get(f"{server.url}/api/version").json()["version"]
    assert tuple(map(int, release.split("."))) >= (0, 6, 4)
    (tag,) = api.list().models
    assert (tag.model, tag.size) == ("tiny:latest", 4)
    assert len(tag.digest or "") == 64
    assert tag.details is not None
    assert tag.details.family == "llama"
    (process,) = api.ps().models
    assert (process.name, process.context_length) == ("tiny:latest", 2048)
    assert process.size_vram == 0


def test_show_is_true_of_the_model(real: ollama.Client, pocket: Server) -> None:
    shown = real.show("pocket:latest")
    assert shown.details is not None
    assert shown.details.quantization_level == "Q8_0"
    assert shown.details.family == "llama"
    assert (shown.details.parameter_size or "").endswith("M")
    assert {"completion", "tools"} <= set(shown.capabilities or [])
    assert shown.parameters == "num_ctx 2048"
    info = shown.modelinfo or {}
    assert info["general.architecture"] == "llama"
    assert info["llama.context_length"] == 2048
    assert info["general.basename"]
    fills = "insert" in (shown.capabilities or [])
    assert fills == (".Suffix" in (shown.template or ""))
    body: dict[str, Any] = {"model": "pocket", "options": {"num_predict": 2}}
    body |= {"prompt": "a", "suffix": "b"}
    assert (post(pocket, "generate", **body).status_code == 200) == fills
    thinks = "thinking" in (shown.capabilities or [])
    body = {"model": "pocket", **ask("hi"), "think": True, "options": {"num_predict": 2}}
    assert (post(pocket, "chat", **body).status_code == 200) == thinks


def test_the_official_client_chats(real: ollama.Client) -> None:
    messages = [{"role": "user", "content": "Tell me about Python."}]
    options = {"temperature": 0, "num_predict": 24}
    whole = real.chat("pocket", messages, options=options)
    parts = list(real.chat("pocket", messages, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].done_reason == whole.done_reason
    assert parts[-1].eval_count == whole.eval_count
    said = real.generate("pocket", "Tell me about Python.", options=options)
    assert said.response == whole.message.content
    with pytest.raises(ollama.ResponseError) as caught:
        real.chat("other", messages)
    assert caught.value.error == "model 'other' not found"
    assert caught.value.status_code == 404


def test_format_holds(real: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    for given in (schema, "json"):
        answer = real.generate("pocket", "Say n.", format=given, options={"num_predict": 60})
        assert (answer.response or "").lstrip().startswith("{")


def test_durations_are_measured(pocket: Server) -> None:
    options = {"num_predict": 32, "temperature": 0}
    found = read(pocket, model="pocket", options=options, **ask("The quick brown fox. " * 30))
    last = found.last or {}
    assert last["prompt_eval_count"] > 100
    assert last["prompt_eval_duration"] > 1e5
    assert last["eval_duration"] > 1e5


def test_nothing_is_cut_at_the_limit(pocket: Server) -> None:
    """One token before the end of the context, at it, and beyond."""

    def n_tokens(n: int) -> httpx.Response:
        text = " a" * n
        options = {"num_predict": 4, "num_ctx": 16}
        return post(
            pocket, "generate", model="pocket", prompt=text, raw=True, stream=False, options=options
        )

    base = n_tokens(100).json()["prompt_eval_count"] - 100
    fits = 2048 - base
    assert n_tokens(fits - 1).json()["prompt_eval_count"] == 2047
    too_long = n_tokens(fits + 1)
    assert too_long.status_code == 400
    assert "maximum context length is 2048 tokens" in too_long.json()["error"]


def _play(client: ollama.Client, task: Task, *, stream: bool) -> bool:
    """Return whether the model made exactly the task's calls, in order, and then answered."""
    messages: list[Any] = [{"role": "user", "content": task.user}]
    tools: Any = [TOOLS[name] for name in sorted({name for name, _, _ in task.steps})]
    options = {"temperature": 0, "num_predict": 96}
    for name, arguments, result in task.steps:
        if stream:
            parts = list(client.chat("pocket", messages, tools=tools, options=options, stream=True))
            calls = [call for part in parts for call in part.message.tool_calls or []]
            message = ollama.Message(
                role="assistant",
                content="".join(part.message.content or "" for part in parts),
                tool_calls=calls,
            )
        else:
            message = client.chat("pocket", messages, tools=tools, options=options).message
        calls = list(message.tool_calls or [])
        if [(c.function.name, dict(c.function.arguments)) for c in calls] != [(name, arguments)]:
            return False
        messages += [message, {"role": "tool", "tool_name": name, "content": result}]
    last = client.chat("pocket", messages, tools=tools, options=options)
    return last.done_reason == "stop" and bool(last.message.content)


@pytest.mark.parametrize("stream", [True, False])
def test_the_model_chains_three_calls(real: ollama.Client, stream: bool) -> None:
    finished = [_play(real, task, stream=stream) for task in TASKS]
    assert sum(finished) >= 3, finished


def test_embeddings(tmp_path: Path) -> None:
    import gguf

    path = write_bert(tmp_path / "bert.gguf", pooling=gguf.PoolingType.MEAN)
    config = config_for(path)
    with running(replace(config, engine=replace(config.engine, n_gpu_layers=0))) as server:
        with ollama.Client(server.url) as client:
            both = client.embed("tiny", ["the cat", "a dog"])
            assert both.prompt_eval_count
            assert np.linalg.norm(both.embeddings[0]) == pytest.approx(1.0, abs=1e-5)
            short = client.embed("tiny:latest", "the cat", dimensions=8)
            assert len(short.embeddings[0]) == 8
            legacy = client.embeddings("tiny", "the cat").embedding
            np.testing.assert_allclose(
                np.array(legacy) / np.linalg.norm(legacy), both.embeddings[0], atol=1e-5
            )
            assert client.embed("tiny", "").embeddings == []
            shown = client.show("tiny")
            assert shown.capabilities == ["embedding"]
            assert ".Suffix" not in (shown.template or "")
            assert (shown.modelinfo or {})["bert.embedding_length"] == 32
        assert post(server, "embed", input="a " * 500).status_code == 400
        assert post(server, "embed", input=["a", ""]).status_code == 400
        assert post(server, "generate", prompt="x").json().keys() == {"error"}
        assert post(server, "chat", **ask("x")).json().keys() == {"error"}
