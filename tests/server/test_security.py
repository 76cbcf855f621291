from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgekit_server import security
from edgekit_server.app import Server
from edgekit_server.errors import ConfigError
from edgekit_server.paths import canonical
from tests.support.http_server import config_for, running
from tests.support.stub_engine import StubEngine

BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def keyed(shared_stub: StubEngine, gguf: Path) -> Iterator[Server]:
    config = config_for(gguf, api_keys=("first-key", "second-key"), max_body_bytes=2000)
    with running(config, shared_stub.spawn) as server:
        yield server


def _chat(server: Server, **headers: str) -> httpx.Response:
    encoded = {k.replace("_", "-"): v.encode() for k, v in headers.items()}
    return httpx.post(f"{server.url}/v1/chat/completions", json=BODY, headers=encoded)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "::1", "127.8.8.8", "[::1]", "a.localhost"]
)
def test_loopback_names(host: str) -> None:
    assert security.is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil.org", ""]
)
def test_other_names(gguf: Path, host: str) -> None:
    assert not security.is_loopback(host)
    with pytest.raises(ConfigError) as caught:
        Server(config_for(gguf, host=host))
    assert caught.value.code == "key_required"
    assert caught.value.hint
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel"])
def test_key_that_no_client_could_send(gguf: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII"):
        Server(config_for(gguf, host="0.0.0.0", api_keys=(key,)))


def test_keys_stay_out_of_the_repr(gguf: Path) -> None:
    assert "first-key" not in repr(config_for(gguf, api_keys=("first-key",)))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer  first-key"},
        {"x_api_key": "first-key"},
    ],
)
def test_right_key(keyed: Server, headers: dict[str, str]) -> None:
    assert _chat(keyed, **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Basic first-key"},
        {"x_api_key": "undefined"},
    ],
)
def test_wrong_key_is_the_401_that_stops_clients(keyed: Server, headers: dict[str, str]) -> None:
    response = _chat(keyed, **headers)
    assert response.status_code == 401
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


def test_health_needs_no_key_but_models_do(keyed: Server) -> None:
    assert httpx.get(f"{keyed.url}/health").status_code == 200
    for path in ("v1/models", "metrics", "nothing", "//v1/models/"):
        assert httpx.get(f"{keyed.url}/{path}").status_code == 401


def test_any_key_when_there_is_none(server: Server) -> None:
    assert _chat(server, authorization="Bearer undefined").status_code == 200


def test_body_limit_by_length_and_by_count(keyed: Server) -> None:
    url, key = f"{keyed.url}/v1/chat/completions", {"authorization": "Bearer first-key"}
    response = httpx.post(url, content=b" " * 2001, headers=key)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    response = httpx.post(url, content=iter([b" " * 1500] * 2), headers=key)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8484", "127.0.0.1.evil.example", "[", ""]
)
def test_rebound_host_is_refused(server: Server, host: str) -> None:
    response = httpx.get(f"{server.url}/v1/models", headers={"host": host})
    assert response.status_code in (400, 403)
    if response.status_code == 403:
        assert response.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost:1234", "LOCALHOST", "[::1]:8484", "127.0.0.1"])
def test_loopback_host_is_served(server: Server, host: str) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"]
)
def test_foreign_page_is_refused(server: Server, origin: str) -> None:
    response = _chat(server, origin=origin)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in response.headers
    preflight = httpx.options(f"{server.url}/v1/chat/completions", headers={"origin": origin})
    assert preflight.status_code != 204


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8080"])
def test_local_page_is_served(server: Server, origin: str) -> None:
    preflight = httpx.options(f"{server.url}/v1/chat/completions", headers={"origin": origin})
    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert _chat(server, origin=origin).headers["access-control-allow-origin"] == origin


def test_editor_s_own_scheme_is_served(server: Server) -> None:
    assert _chat(server, origin="vscode-webview://abc").status_code == 200


def test_request_id_is_echoed_or_made(server: Server) -> None:
    assert _chat(server, x_request_id="abc-1").headers["x-request-id"] == "abc-1"
    assert len(_chat(server, x_request_id="a b").headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/v1/models", "/v1/models"),
        ("/models/", "/v1/models"),
        ("//v1//models//a/b", "/v1/models/a/b"),
        ("/v1/v1/models", "/v1/models"),
        ("/v1/health", "/health"),
        ("/", "/"),
        ("/other", "/other"),
    ],
)
def test_paths(given: str, expected: str) -> None:
    assert canonical(given) == expected
