"""Engine children that die, hang or never load; clients that leave."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from edgekit_server import app as app_module
from edgekit_server import client as client_module
from edgekit_server.app import Server
from edgekit_server.errors import BadModelError, EngineDiedError
from edgekit_server.suspects import Suspects
from tests.support import sse
from tests.support.http_server import config_for, running
from tests.support.stub_engine import StubEngine


def _body(text: str, **more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


def _until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def faulty(stub: StubEngine, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(client_module, "STOP_PATIENCE_S", 0.3)
    with running(config_for(gguf, keepalive_s=0.1), stub.spawn) as server:
        yield server


def _chat(server: Server, text: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=_body(text), timeout=20)


def test_open_stream_ends_with_a_typed_error_and_the_engine_comes_back(faulty: Server) -> None:
    _, found = sse.post(f"{faulty.url}/v1/chat/completions", _body("dies later", stream=True))
    assert found[-1]["error"]["code"] == "engine_died"
    assert found[-1]["error"]["type"] == "server_error"
    assert [c["choices"][0]["delta"].get("content") for c in found[:-1]] == ["", "a", "b"]
    assert _chat(faulty, "hi").json()["choices"][0]["message"]["content"] == "hello"
    assert "edgekit_engine_restarts_total 1" in httpx.get(f"{faulty.url}/metrics").text


def test_openai_s_client_raises_on_a_died_stream(faulty: Server) -> None:
    client = openai.OpenAI(base_url=f"{faulty.url}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.APIError, match="died"):
        list(client.chat.completions.create(stream=True, **_body("dies later")))  # type: ignore[call-overload]


def test_killed_from_outside(faulty: Server) -> None:
    process = faulty.app.state.router.client.process
    with httpx.stream(
        "POST", f"{faulty.url}/v1/chat/completions", json=_body("long", stream=True), timeout=20
    ) as response:
        lines = response.iter_lines()
        for line in lines:
            if '"content":"x"' in line:
                break
        os.kill(process.pid, signal.SIGKILL)
        found = sse.events(lines)
    assert found[-1]["error"]["code"] == "engine_died"
    assert _chat(faulty, "hi").status_code == 200


def test_request_that_kills_twice_is_refused(faulty: Server) -> None:
    for _ in range(2):
        response = _chat(faulty, "dies at once")
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_died"
        assert response.headers["retry-after"]
    response = _chat(faulty, "dies at once")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "request_kills_engine")
    assert _chat(faulty, "hi").status_code == 200


def test_client_that_retries_by_itself_ends_at_the_refusal(faulty: Server) -> None:
    client = openai.OpenAI(base_url=f"{faulty.url}/v1", api_key="x", max_retries=2)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**_body("dies at once"))  # type: ignore[call-overload]
    assert caught.value.code == "request_kills_engine"


def test_bystander_that_completes_is_cleared() -> None:
    now = [0.0]
    suspects = Suspects(clock=lambda: now[0])
    suspects.blame([b"killer", b"bystander"])
    suspects.clear(b"bystander")
    suspects.blame([b"killer", b"bystander"])
    assert suspects.refused(b"killer")
    assert not suspects.refused(b"bystander")
    now[0] = 3601.0
    assert not suspects.refused(b"killer")


@pytest.mark.parametrize("text", ["long", "silent", "hangs"])
@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_cancels(
    faulty: Server, stub: StubEngine, text: str, stream: bool
) -> None:
    limits = httpx.Timeout(5.0, read=0.3)
    url, body = f"{faulty.url}/v1/chat/completions", _body(text, stream=stream)
    with httpx.Client(timeout=limits) as client:
        if stream:
            with client.stream("POST", url, json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(url, json=body)
    _until(lambda: "cancel 1" in stub.lines())
    assert faulty.app.state.router.client.in_flight == 0


def test_stop_string_cancels_the_rest(faulty: Server, stub: StubEngine) -> None:
    response = httpx.post(
        f"{faulty.url}/v1/chat/completions", json=_body("long", stop="xxx"), timeout=20
    )
    assert response.json()["choices"][0]["message"]["content"] == ""
    _until(lambda: "cancel 1" in stub.lines())


def test_hanging_engine_does_not_hang_the_shutdown(
    stub: StubEngine, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STOP_PATIENCE_S", 0.3)
    with running(config_for(gguf, keepalive_s=0.1), stub.spawn) as server:
        process = server.app.state.router.client.process
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=_body("hangs"), timeout=0.5)
    assert process.poll() is not None


def test_open_stream_at_shutdown_ends_with_a_typed_error(
    stub: StubEngine, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "GRACE_S", 0.5)
    with running(config_for(gguf, keepalive_s=0.1), stub.spawn) as server:
        process = server.app.state.router.client.process
        client = httpx.Client(timeout=20)
        request = client.build_request(
            "POST", f"{server.url}/v1/chat/completions", json=_body("long", stream=True)
        )
        response = client.send(request, stream=True)
        lines = response.iter_lines()
        next(lines)
    assert process.poll() is not None
    assert sse.events(lines)[-1]["error"]["code"] == "shutting_down"
    response.close()
    client.close()


@pytest.mark.parametrize(
    ("fatal", "kind"), [("bad_model", BadModelError), ("internal", EngineDiedError)]
)
def test_model_that_does_not_load_ends_the_server(
    gguf: Path, tmp_path: Path, fatal: str, kind: type[Exception]
) -> None:
    stub = StubEngine([], tmp_path / "log", fatal=fatal)
    with pytest.raises(kind, match="scripted failure"), running(config_for(gguf), stub.spawn):
        pass


def test_many_clients_at_once(faulty: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: _chat(faulty, "count").json(), range(32)))
    texts = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert texts == {"one two three four"}
