"""Three real models on one server: pocket under two names, and an encoder."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx
import pytest

from edgekit_server.app import Server
from edgekit_server.config import EngineConfig, ModelConfig, ServeConfig
from tests.support import sse, vector_models
from tests.support.http_server import running
from tests.support.pocket import convert_pocket


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("several")
    pocket, encoder = (
        convert_pocket(folder),
        vector_models.write_bert(folder / "bert.gguf", pooling=gguf.PoolingType.MEAN),
    )
    common: dict[str, Any] = {"n_threads": 1, "n_seq_max": 2}
    models = (
        ModelConfig(
            EngineConfig(pocket, "talk", n_ctx=2048, **common), roles=("chat",), memory_bytes=2
        ),
        ModelConfig(
            EngineConfig(pocket, "code", n_ctx=1024, **common),
            roles=("completion",),
            memory_bytes=2,
        ),
        ModelConfig(
            EngineConfig(encoder, "vectors", n_ctx=64, embed_ctx=64, n_threads=1), memory_bytes=1
        ),
    )
    config = ServeConfig(models[0].engine, port=0, models=models, memory_budget_bytes=3)
    with running(config) as made:
        yield made


def post(server: Server, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def chat(server: Server, **more: object) -> httpx.Response:
    messages = [{"role": "user", "content": "hi"}]
    return post(server, "chat/completions", messages=messages, max_tokens=4, **more)


def listed(server: Server) -> dict[str, Any]:
    return {m["id"]: m for m in httpx.get(f"{server.url}/v1/models").json()["data"]}


def test_each_endpoint_finds_its_model_and_makes_room(server: Server) -> None:
    assert {name: m["status"]["value"] for name, m in listed(server).items()} == {
        "talk": "loaded",
        "code": "unloaded",
        "vectors": "unloaded",
    }
    assert chat(server).json()["model"] == "talk"
    vectors = post(server, "embeddings", input="w1 w2").json()
    assert vectors["model"] == "vectors"
    assert len(vectors["data"][0]["embedding"]) == 32
    filled = post(server, "completions", prompt="def f(", suffix="return", max_tokens=4).json()
    assert filled["model"] == "code"
    found = listed(server)
    assert {name: m["status"]["value"] for name, m in found.items()} == {
        "talk": "unloaded",
        "code": "loaded",
        "vectors": "loaded",
    }
    assert [found[n]["context_length"] for n in ("talk", "code")] == [2048, 1024]
    assert found["talk"]["capabilities"] == ["chat", "completion", "fim", "tools", "embeddings"]
    assert found["vectors"]["capabilities"] == ["embeddings"]


def test_what_a_model_cannot_do_is_said_and_no_other_model_does_it(server: Server) -> None:
    assert chat(server, model="vectors").status_code == 400
    assert chat(server, model="nobody").status_code == 404


def test_agents_and_editors_take_turns(server: Server) -> None:
    def ask(number: int) -> bool:
        if number % 3 == 0:
            answered = chat(server, model="talk")
        elif number % 3 == 1:
            answered = post(server, "completions", model="code", prompt="def ", max_tokens=4)
        else:
            answered = post(server, "embeddings", model="vectors", input="w1")
        return answered.status_code == 200

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(6)))


def test_streams_of_two_models_keep_the_contract(server: Server) -> None:
    for name in ("talk", "code"):
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
        response, events = sse.post(f"{server.url}/v1/chat/completions", {**body, "stream": True})
        assert response.status_code == 200
        sse.check_chat_stream(events)


def test_a_model_that_made_room_is_gone(tmp_path: Path) -> None:
    """Its memory is free: its process has ended, in order."""
    pocket = convert_pocket(tmp_path)
    models = tuple(
        ModelConfig(EngineConfig(pocket, name, n_ctx=512, n_threads=1), memory_bytes=1)
        for name in ("a", "b")
    )
    config = ServeConfig(models[0].engine, port=0, models=models, memory_budget_bytes=1)
    with running(config) as made:
        first = made.app.state.router.client.process
        assert chat(made, model="b").status_code == 200
        assert first.poll() == 0
