"""Any JSON under any known field: never a 5xx, always OpenAI's error shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit_server.api.schema import ChatRequest, CompletionRequest
from edgekit_server.app import Server

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(["user", "auto", "function", "text", "[INST]", "</s>", "\ufdd0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "function", "name", "text", "1", "arguments"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": values}), max_size=4)


def _bodies(fields: list[str], required: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    extra = st.dictionaries(st.sampled_from(fields), values, max_size=3)
    return st.builds(lambda a, b: {**a, **b}, st.fixed_dictionaries(required), extra)


chat_bodies = _bodies(
    list(ChatRequest.model_fields), {"messages": messages | values, "max_tokens": st.just(2)}
)
completion_bodies = _bodies(list(CompletionRequest.model_fields), {"prompt": values})


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def _check(response: httpx.Response) -> None:
    if response.status_code == 200:
        assert b'"choices"' in response.content
        return
    assert response.status_code in (400, 404, 429), response.text
    error = response.json()["error"]
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "rate_limit_error")
    assert error["code"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat_bodies)
def test_chat(http: httpx.Client, body: dict[str, Any]) -> None:
    _check(http.post("/v1/chat/completions", json=body))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(completion_bodies)
def test_completions(http: httpx.Client, body: dict[str, Any]) -> None:
    _check(http.post("/v1/completions", json=body))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="ascii"), max_size=12), st.sampled_from(["GET", "POST", "PUT"]))
def test_any_path(http: httpx.Client, path: str, method: str) -> None:
    response = http.request(method, "/" + quote(path))
    assert response.status_code in (200, 400, 404, 405)
    if response.status_code != 200:
        assert response.json()["error"]["message"]
