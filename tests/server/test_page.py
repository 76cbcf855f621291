"""The page at `/`: what it is made of, who gets it, and the figures that it shows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from edgekit_server.api import status
from edgekit_server.app import Server
from edgekit_server.client import State
from edgekit_server.config import ModelConfig
from edgekit_server.errors import EngineDiedError
from edgekit_server.paths import PAGE
from edgekit_server.recent import MAX_SAMPLES, WINDOW_S, Recent, spread
from edgekit_server.router import Router
from tests.support import sse
from tests.support.http_server import config_for, running
from tests.support.stub_engine import StubEngine

WEB = {item.name: item for item in files("edgekit_server").joinpath("web").iterdir()}
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
REPORT = {"schema": "edgekit.bench/1", "model": "tiny", "rows": [], "device": "\ud800"}
SPREAD = {
    "type": "object",
    "required": ["p50", "p95", "samples"],
    "properties": {
        "p50": {"type": ["number", "null"]},
        "p95": {"type": ["number", "null"]},
        "samples": {"type": "integer"},
    },
}
COUNT = {"type": ["integer", "null"], "minimum": 0}
TEXT = {"type": ["string", "null"]}
MODEL: dict[str, Any] = {
    "id": {"type": "string"},
    "aliases": {"type": "array"},
    "licence": {"type": ["object", "null"], "required": ["name", "shown"]},
    "state": {"enum": ["loading", "ready", "restarting", "failed", "stopped", "unloaded"]},
    "failure": {"type": ["object", "null"], "required": ["message", "hint"]},
    "restarts": {"type": "integer"},
    "in_flight": {"type": "integer"},
    "queued": {"type": "integer"},
    "filetype": TEXT,
    "n_ctx_seq": COUNT,
    "n_ctx": COUNT,
    "n_ctx_train": COUNT,
    "n_seq_max": COUNT,
    "n_params": COUNT,
    "size_bytes": COUNT,
    "architecture": TEXT,
    "capabilities": {"type": ["array", "null"]},
    "buffers": {"type": ["array", "null"]},
    "reasons": {"type": "object"},
}
STATUS = {
    "schema": {"const": "edgekit.status/1"},
    "models": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": list(MODEL),
            "properties": MODEL,
            "additionalProperties": False,
        },
    },
    "ttft_ms": SPREAD,
    "itl_ms": SPREAD,
    "output_tok_s": {"type": "number"},
    "waiting": {"type": "integer"},
    "prompt_tokens": {"type": "integer"},
    "output_tokens": {"type": "integer"},
    "report_version": TEXT,
}


def _status(server: Server, **options: Any) -> Any:
    response = httpx.get(f"{server.url}/status", **options)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    found = response.json()
    schema = {"type": "object", "required": list(STATUS), "properties": STATUS}
    jsonschema.validate(found, {**schema, "additionalProperties": False})
    return found


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_browser_gets_the_page(server: Server, method: str) -> None:
    response = httpx.request(method, server.url, headers={"accept": BROWSER})
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["vary"] == "Accept"
    body = WEB["index.html"].read_bytes()
    assert response.headers["content-length"] == str(len(body))
    assert response.content == (body if method == "GET" else b"")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("accept", ["*/*", "application/json", None])
def test_ollama_s_clients_get_their_line(server: Server, method: str, accept: str | None) -> None:
    headers = {} if accept is None else {"accept": accept}
    with httpx.Client() as client:
        if accept is None:
            del client.headers["accept"]
        response = client.request(method, f"{server.url}/", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == ("Ollama is running" if method == "GET" else "")


@pytest.mark.parametrize("path", sorted(PAGE))
def test_every_file_forbids_everything_foreign(server: Server, path: str) -> None:
    response = httpx.get(server.url + path, headers={"accept": BROWSER})
    assert response.status_code == 200
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'",
        "connect-src": "'self'", "img-src": "'self' data:", "base-uri": "'none'",
        "frame-ancestors": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert httpx.head(server.url + path).status_code == 200


@pytest.mark.parametrize("name", ["index.html", "nothing.js", "..%2fapp.py", "__init__.py"])
def test_nothing_else_is_served(server: Server, name: str) -> None:
    assert httpx.get(f"{server.url}/web/{name}").status_code == 404


def test_the_page_is_the_files_of_its_folder() -> None:
    assert {f"/web/{name}" for name in WEB} - {"/web/index.html"} == PAGE - {"/"}
    html = WEB["index.html"].read_text()
    used = set(re.findall(r'(?:href|src)="(web/[^"]+)"', html))
    for name, item in WEB.items():
        if name.endswith(".js"):
            used |= {f"web/{found}" for found in re.findall(r'from "\./(.+)"', item.read_text())}
    assert used == {path.lstrip("/") for path in PAGE} - {""}


@pytest.mark.parametrize("name", sorted(WEB))
def test_no_file_names_another_place(name: str) -> None:
    text = WEB[name].read_text()
    places = set(re.findall(r"(?:https?:|wss?:)?//[\w\[][^\s'\"`)]*", text))
    places = {place for place in places if ":" in place.split("//")[0] or name.endswith("html")}
    # A name, not an address: nothing is loaded from it.
    assert places <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", text)
    assert not re.search(r"\sstyle=|\son[a-z]+=\"|<style|<script(?! type=\"module\" src)", text)
    assert "@import" not in text


def test_status_tells_what_runs(server: Server) -> None:
    model = _status(server)["models"][0]
    assert (model["id"], model["state"], model["failure"]) == ("tiny", "ready", None)
    assert (model["n_ctx_seq"], model["n_seq_max"], model["n_ctx_train"]) == (2048, 4, 8192)
    assert {"chat", "fim"} <= set(model["capabilities"])
    assert httpx.get(f"{server.url}/v1/status").status_code == 200


def test_status_counts_what_was_asked(shared_stub: StubEngine, gguf: Path) -> None:
    with running(config_for(gguf), shared_stub.spawn) as server:
        before = _status(server)
        assert before["ttft_ms"] == {"p50": None, "p95": None, "samples": 0}
        url = f"{server.url}/v1/chat/completions"
        sse.post(url, {"messages": [{"role": "user", "content": "count"}], "stream": True})
        after = _status(server)
        assert after["ttft_ms"]["samples"] == 1
        assert after["itl_ms"]["samples"] == len("one two three four") - 1
        assert after["itl_ms"]["p50"] >= 5
        assert after["itl_ms"]["p95"] is None
        assert after["output_tokens"] == len("one two three four")
        long = {"messages": [{"role": "user", "content": "long"}], "stream": True, "n": 6}
        with httpx.stream("POST", url, json=long) as response:
            # Text, at last: headers and keep-alives may go out before the engine knows of it.
            lines = response.iter_lines()
            while '"content":"x' not in next(lines):
                pass
            model = _status(server)["models"][0]
            assert (model["in_flight"], model["queued"]) == (6, 2)


def test_what_is_unknown_while_it_loads_is_null(tmp_path: Path, gguf: Path) -> None:
    stub = StubEngine([], tmp_path / "log", load_s=0.3)
    with running(config_for(gguf), stub.spawn, wait=False) as server:
        model = _status(server)["models"][0]
        assert model["state"] == "loading"
        assert model["n_ctx_seq"] is model["capabilities"] is model["filetype"] is None


def test_a_model_that_does_not_load_says_why(tmp_path: Path, gguf: Path) -> None:
    served = Router(config_for(gguf), StubEngine([], tmp_path / "log").spawn).served[0]
    served.client.state = State.FAILED
    served.client.failure = EngineDiedError("no room", hint="try less")
    described = status.describe(served)
    assert described["state"] == "failed"
    assert described["failure"] == {"message": "no room", "hint": "try less"}


def test_a_model_that_waits_to_be_asked_for(shared_stub: StubEngine, gguf: Path) -> None:
    config = config_for(gguf)
    engines = [replace(config.engine, model_id=name) for name in ("tiny", "other")]
    models = tuple(ModelConfig(engine) for engine in engines)
    with running(replace(config, models=models), shared_stub.spawn) as server:
        assert [m["state"] for m in _status(server)["models"]] == ["ready", "unloaded"]
        body = {"model": "other", "messages": [{"role": "user", "content": "limit"}]}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200
        assert [m["state"] for m in _status(server)["models"]] == ["ready", "ready"]


def test_with_keys_the_page_is_open_and_the_figures_are_not(
    shared_stub: StubEngine, gguf: Path
) -> None:
    with running(config_for(gguf, api_keys=("k",)), shared_stub.spawn) as server:
        for path in PAGE:
            assert httpx.get(server.url + path, headers={"accept": BROWSER}).status_code == 200
        for path in ("/status", "/status/report"):
            assert httpx.get(server.url + path).status_code == 401
        _status(server, headers={"authorization": "Bearer k"})


def test_the_report_is_read_when_it_changes(
    shared_stub: StubEngine, gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    with running(config_for(gguf, report=path), shared_stub.spawn) as server:
        assert _status(server)["report_version"] is None
        missing = httpx.get(f"{server.url}/status/report")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "no_report")
        path.write_text(json.dumps(REPORT))
        first = _status(server)["report_version"]
        assert httpx.get(f"{server.url}/status/report").json() == REPORT
        path.write_text(json.dumps({**REPORT, "rows": [1]}))
        assert _status(server)["report_version"] != first


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema": "edgekit.fit/1"}', '{"schema": "edgekit.bench/1", "a": NaN}',
     "[" * 100_000, "\xff", " " * (status.MAX_REPORT_BYTES + 1)],
)  # fmt: skip
def test_a_file_that_is_no_report_is_a_404(server: Server, tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("latin-1"))
    state = server.app.state
    before, state.config = state.config, replace(state.config, report=path)
    try:
        response = httpx.get(f"{server.url}/status/report")
    finally:
        state.config = before
    assert (response.status_code, response.json()["error"]["code"]) == (404, "no_report")


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("llama 24B Q4_K - Medium", "Q4_K_M"),
        ("qwen2 1.5B Q3_K - Small", "Q3_K_S"),
        ("llama ?B Q8_0", "Q8_0"),
        ("gemma3 27B BF16", "BF16"),
        ("llama 7B F16", "F16"),
        ("llama 7B IQ4_XS - 4.25 bpw", "IQ4_XS"),
        ("llama 7B all F32", "F32"),
        ("gpt-oss 20B MXFP4 MoE", "MXFP4"),
        ("llama 7B unknown, may not work", None),
        ("stub", None),
        ("", None),
    ],
)
def test_file_type_in_the_engine_s_line(description: str, expected: str | None) -> None:
    assert status.filetype(description) == expected


def test_where_the_weights_lie() -> None:
    said = "CUDA0 model buffer size = 1 MiB; CPU model buffer size = 2 MiB; CUDA0 KV buffer size"
    assert status.buffers(said) == ["CUDA0", "CPU"]
    assert status.buffers("") == []


@pytest.mark.parametrize(
    ("samples", "p50", "p95"),
    [([], None, None), ([0.002], 2.0, None), ([0.001 * i for i in range(1, 21)], 10.0, 19.0)],
)
def test_percentiles(samples: list[float], p50: float | None, p95: float | None) -> None:
    found = spread(samples)
    assert (found.p50, found.p95, found.samples) == (p50, p95, len(samples))


def test_what_is_old_is_forgotten() -> None:
    recent = Recent()
    recent.output(100.0, 0.5, 1, first=True)
    recent.output(100.2, 0.2, 2, first=False)
    recent.output(101.9, 0.3, 7, first=False)
    at = recent.figures(102.5)
    assert (at.ttft_ms.samples, at.itl_ms.samples, at.output_tok_s) == (1, 2, 2.0)
    assert recent.figures(106.5).output_tok_s == 7 / 5
    later = recent.figures(100.1 + WINDOW_S)
    assert (later.ttft_ms.samples, later.itl_ms.samples, later.output_tok_s) == (0, 2, 0.0)
    for i in range(MAX_SAMPLES + 10):
        recent.output(200.0 + i, 0.1, 1, first=False)
    assert recent.figures(210.0 + MAX_SAMPLES - WINDOW_S).itl_ms.samples <= MAX_SAMPLES
