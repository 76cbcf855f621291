from __future__ import annotations

import time
from pathlib import Path

import httpx
import openai
import pytest

from edgekit_server.app import Server
from tests.support.http_server import config_for, running
from tests.support.stub_engine import StubEngine


def test_list_and_get(client: openai.OpenAI) -> None:
    models = list(client.models.list())
    assert [m.id for m in models] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert client.models.retrieve("alias").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/name:tag")
    assert caught.value.code == "model_not_found"


def test_fields_are_true_and_enough(server: Server) -> None:
    model = httpx.get(f"{server.url}/models").json()["data"][0]
    assert model["max_model_len"] == model["context_length"] == 2048
    assert model["status"] == {"value": "loaded"}
    assert model["meta"]["n_ctx"] == 2048  # its presence calls for /props and /apply-template


@pytest.mark.parametrize("path", ["health", "livez", "readyz", "v1/health"])
def test_health(server: Server, path: str) -> None:
    response = httpx.get(f"{server.url}/{path}")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert httpx.head(f"{server.url}/{path}").status_code == 200


def test_openapi_document_describes_every_route(server: Server) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"} <= paths.keys()
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert "requestBody" in paths[path]["post"]


def test_while_loading(gguf: Path, tmp_path: Path) -> None:
    stub = StubEngine([], tmp_path / "log", load_s=1.0)
    with running(config_for(gguf), stub.spawn, wait=False) as server:
        _wait_for_port(server)
        assert httpx.get(f"{server.url}/livez").status_code == 200
        response = httpx.get(f"{server.url}/readyz")
        assert response.status_code == 503
        assert response.json()["error"]["message"] == "Loading model"
        body = {"messages": [{"role": "user", "content": "hi"}]}
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 10
        model = httpx.get(f"{server.url}/v1/models/tiny").json()
        assert model["status"] == {"value": "loading"}
        assert "context_length" not in model


def _wait_for_port(server: Server) -> None:
    for _ in range(100):
        try:
            httpx.get(f"{server.url}/livez")
            return
        except httpx.TransportError:
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_errors_of_the_framework_have_the_shape(
    server: Server, method: str, path: str, status: int, code: str
) -> None:
    response = httpx.request(method, server.url + path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


def test_metrics(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    httpx.post(f"{server.url}/v1/chat/completions", json=body)
    httpx.get(f"{server.url}/no/such/path")
    text = httpx.get(f"{server.url}/metrics").text
    assert 'edgekit_requests_total{route="/v1/chat/completions",status="200"} 1' in text
    assert 'edgekit_requests_total{route="other",status="404"}' in text
    assert "edgekit_output_tokens_total 5" in text
    assert "edgekit_ttft_seconds_count 1" in text
    assert "edgekit_requests_in_flight 0" in text
    assert "edgekit_ready 1" in text
