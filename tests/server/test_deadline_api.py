"""X-Request-Timeout: through the front to the engine, and back as an error of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from edgekit_server.app import Server
from tests.support import sse
from tests.support.gguf_models import write_model
from tests.support.http_server import config_for, running

ENDLESS: dict[str, Any] = {"prompt": [9, 10], "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = write_model(tmp_path_factory.mktemp("models") / "tiny.gguf")
    with running(config_for(path)) as server:
        yield server


def _post(server: Server, seconds: str, path: str = "completions", **more: Any) -> httpx.Response:
    body = {"prompt": [9, 10], "messages": [{"role": "user", "content": "hi"}], **more}
    headers = {"X-Request-Timeout": seconds}
    return httpx.post(f"{server.url}/v1/{path}", json=body, headers=headers, timeout=30)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize("n", [1, 3])
def test_whole_answer(tiny: Server, path: str, n: int) -> None:
    response = _post(tiny, "0.05", path, ignore_eos=True, n=n)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (504, "timeout_error")
    assert error["code"] == "request_timeout"
    assert _post(tiny, "20", path, max_tokens=2).status_code == 200
    assert tiny.app.state.router.client.in_flight == 0


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_stream(tiny: Server, path: str) -> None:
    body = {"prompt": [9], "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with httpx.stream(
        "POST",
        f"{tiny.url}/v1/{path}",
        json={**body, "ignore_eos": True},
        headers={"x-request-timeout": "0.1"},
        timeout=30,
    ) as response:
        found = sse.events(response.iter_lines())
    assert found[-1]["error"]["code"] == "request_timeout"
    assert len(found) > 1


def test_official_client(tiny: Server) -> None:
    client = openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="x", max_retries=0)
    with client, pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(
            model="tiny", extra_headers={"X-Request-Timeout": "0.05"}, extra_body=ENDLESS, prompt=""
        )
    assert caught.value.code == "request_timeout"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", ""])
def test_no_number_of_seconds(tiny: Server, seconds: str) -> None:
    response = _post(tiny, seconds, max_tokens=1)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "x-request-timeout")
