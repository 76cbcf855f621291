"""Several models on one server: who answers, who is loaded, who has to go."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit_server import app as app_module
from edgekit_server import client as client_module
from edgekit_server.errors import ConfigError, ModelMissingError
from tests.support import sse
from tests.support.fleet import Fleet, fleet, model
from tests.support.stub_engine import StubEngine


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Stream:
    """An answer that goes on, read up to its first text."""

    def __init__(self, running: Fleet, client: httpx.Client, name: str, text: str) -> None:
        body = {"model": name, "messages": [{"role": "user", "content": text}], "stream": True}
        url = f"{running.server.url}/v1/chat/completions"
        self.response = client.send(client.build_request("POST", url, json=body), stream=True)
        self.lines = self.response.iter_lines()
        next(line for line in self.lines if '"content":"x"' in line)

    def rest(self) -> list[Any]:
        """Read it to its end."""
        return sse.events(self.lines)

    def close(self) -> None:
        self.response.close()


def stream(running: Fleet, client: httpx.Client, name: str, text: str = "long") -> Stream:
    return Stream(running, client, name, text)


def test_models_answer_to_their_names_and_are_loaded_when_asked_for(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b", aliases=("bee",)), model(tmp_path, "c")]
    with fleet(tmp_path, *models) as running:
        assert running.status() == {"a": "loaded", "b": "unloaded", "c": "unloaded"}
        before = running.http.get(f"{running.server.url}/v1/models/bee").json()
        assert "context_length" not in before
        assert "capabilities" not in before
        assert running.answer("b") == "b"
        assert running.answer("bee") == "b"
        assert running.answer("a") == "a"
        assert running.status() == {"a": "loaded", "b": "loaded", "c": "unloaded"}
        after = running.http.get(f"{running.server.url}/v1/models/bee").json()
        assert after["id"] == "b"
        assert after["context_length"] == 2048
        assert after["capabilities"] == ["chat", "completion", "fim", "tools"]
        refused = running.post(model="d")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert "'a', 'b', 'c'" in refused.json()["error"]["message"]
        assert running.loads("b") == 1


def test_who_names_no_model_gets_the_first_of_the_endpoint_s_role(tmp_path: Path) -> None:
    models = [
        model(tmp_path, "talk", roles=("chat",)),
        model(tmp_path, "code", roles=("completion",)),
    ]
    with fleet(tmp_path, *models) as running:
        assert running.post().json()["model"] == "talk"
        assert running.post(model="").json()["model"] == "talk"
        assert running.loads("code") == 0
        assert running.post("completions").json()["model"] == "code"
        assert running.post("completions", suffix="end").json()["model"] == "code"
        # A name is a name, whatever the model's role.
        assert running.post("completions", model="talk").json()["model"] == "talk"


def test_the_least_recently_used_one_makes_room(tmp_path: Path) -> None:
    models = [model(tmp_path, name) for name in "abc"]
    with fleet(tmp_path, *models, memory_budget_bytes=2) as running:
        running.answer("b")
        assert running.loaded() == {"a", "b"}
        running.answer("a")
        running.answer("c")
        assert running.loaded() == {"a", "c"}
        running.answer("b")
        assert running.loaded() == {"b", "c"}
        process = running.model("a").client.process
        assert process.poll() is not None
        # What was known of it still is.
        assert (
            running.http.get(f"{running.server.url}/v1/models/a").json()["context_length"] == 2048
        )
        assert [running.loads(name) for name in "abc"] == [1, 2, 1]


def test_a_pinned_one_stays(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b", pinned=True), model(tmp_path, "c")]
    with fleet(tmp_path, *models, memory_budget_bytes=2, idle_unload_s=0.2) as running:
        assert running.loads("b") == 1
        running.answer("a")
        running.answer("c")
        assert running.loaded() == {"b", "c"}
        until(lambda: running.loaded() == {"b"})


def test_a_busy_one_is_waited_for(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b")]
    with (
        fleet(tmp_path, *models, memory_budget_bytes=1) as running,
        concurrent.futures.ThreadPoolExecutor() as pool,
        httpx.Client(timeout=20) as client,
    ):
        open_stream = stream(running, client, "a")
        waits = pool.submit(running.answer, "b")
        until(lambda: running.server.app.state.router.waiting == 1)
        # Who comes later for the one that has to go stands behind: nobody waits for ever.
        behind = pool.submit(running.answer, "a")
        until(lambda: running.server.app.state.router.waiting == 2)
        assert (
            "edgekit_requests_waiting 2" in running.http.get(f"{running.server.url}/metrics").text
        )
        time.sleep(0.1)
        assert running.loaded() == {"a"}
        assert not waits.done()
        open_stream.close()
        assert waits.result(10) == "b"
        assert behind.result(10) == "a"
        assert (running.loads("a"), running.loads("b")) == (2, 1)


def test_while_one_is_leaving_no_other_goes_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STOP_PATIENCE_S", 0.7)
    models = [model(tmp_path, name) for name in "abc"]
    with (
        fleet(tmp_path, *models, memory_budget_bytes=2) as running,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        body = {"model": "a", "messages": [{"role": "user", "content": "hangs"}]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.server.url}/v1/chat/completions", json=body, timeout=0.3)
        running.answer("b")
        waits = pool.submit(running.answer, "c")
        until(lambda: running.model("a").leaving)
        for _ in range(3):
            running.answer("b")
        assert running.model("a").leaving
        assert waits.result(10) == "c"
        assert running.loaded() == {"b", "c"}
        assert running.loads("b") == 1


def test_waiting_ends_in_a_503(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b")]
    with (
        fleet(tmp_path, *models, memory_budget_bytes=1, load_wait_s=0.3) as running,
        httpx.Client(timeout=20) as client,
    ):
        open_stream = stream(running, client, "a")
        refused = running.post(model="b")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_busy"
        assert int(refused.headers["retry-after"]) >= 10
        # A stream has begun by then, if only with comments.
        _, events = sse.post(
            f"{running.server.url}/v1/chat/completions",
            {"model": "b", "messages": [{"role": "user", "content": "hi"}], "stream": True},
        )
        assert events[-1]["error"]["code"] == "model_busy"
        # The one in use never noticed.
        assert running.answer("a") == "a"
        open_stream.close()
        assert running.answer("b") == "b"


def test_a_client_s_own_deadline_counts_in_line_and_while_loading(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b"), model(tmp_path, "c")]
    slow = {"c": StubEngine([], tmp_path / "c.log", load_s=1.0)}
    with (
        fleet(tmp_path, *models, stubs=slow, memory_budget_bytes=1) as running,
        httpx.Client(timeout=20) as client,
    ):
        running.http.headers["x-request-timeout"] = "0.3"
        running.answer("a")
        assert running.post(model="c").json()["error"]["code"] == "request_timeout"
        until(lambda: running.status()["c"] == "loaded")
        del running.http.headers["x-request-timeout"]
        open_stream = stream(running, client, "a")
        running.http.headers["x-request-timeout"] = "0.3"
        refused = running.post("completions", model="b")
        assert (refused.status_code, refused.json()["error"]["code"]) == (504, "request_timeout")
        open_stream.close()


def test_a_stream_lives_while_its_model_loads(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b")]
    slow = {"b": StubEngine([], tmp_path / "b.log", load_s=0.5)}
    body = {"model": "b", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with fleet(tmp_path, *models, stubs=slow) as running:
        url = f"{running.server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=10) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-request-id"]
            assert running.status()["b"] == "loading"
            lines = list(response.iter_lines())
    assert lines[0] == ": keep-alive"
    assert sum(line == ": keep-alive" for line in lines) >= 3
    sse.check_chat_stream(sse.events(iter(lines)))


def test_who_leaves_leaves_the_line(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b")]
    with (
        fleet(tmp_path, *models, memory_budget_bytes=1) as running,
        httpx.Client(timeout=20) as client,
    ):
        open_stream = stream(running, client, "a")
        body = {"model": "b", "messages": [{"role": "user", "content": "hi"}]}
        for path in ("chat/completions", "embeddings"):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{running.server.url}/v1/{path}", json={**body, "input": "x"}, timeout=0.2
                )
        until(lambda: running.server.app.state.router.waiting == 0)
        open_stream.close()
        until(lambda: running.model("a").holds == 0)
        assert running.loads("b") == 0


def test_many_requests_that_take_turns_are_all_answered(tmp_path: Path) -> None:
    models = [model(tmp_path, name) for name in "abc"]
    with (
        fleet(tmp_path, *models, memory_budget_bytes=2) as running,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        asked = [name for _ in range(4) for name in "abc"]
        assert list(pool.map(running.answer, asked)) == asked
        until(lambda: all(running.model(name).holds == 0 for name in "abc"))


def test_an_unused_one_is_unloaded_and_comes_back(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b")]
    with (
        fleet(tmp_path, *models, idle_unload_s=0.3) as running,
        httpx.Client(timeout=20) as client,
    ):
        open_stream = stream(running, client, "a")
        running.answer("b")
        until(lambda: running.status()["b"] == "unloaded")
        assert running.status()["a"] == "loaded"
        open_stream.close()
        until(lambda: running.loaded() == set())
        assert running.http.get(f"{running.server.url}/readyz").status_code == 200
        text = running.http.get(f"{running.server.url}/metrics").text
        assert 'edgekit_model_loaded{model="a"} 0' in text
        assert 'edgekit_model_loads_total{model="b"} 1' in text
        assert running.answer("a") == "a"


def test_a_child_that_dies_takes_no_other_with_it(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b", preload=True)]
    with fleet(tmp_path, *models) as running, httpx.Client(timeout=20) as client:
        open_stream = stream(running, client, "a", "second")
        died = running.post(model="b", text="dies")
        assert (died.status_code, died.json()["error"]["code"]) == (503, "engine_died")
        assert running.answer("b") == "b"
        os.kill(running.model("b").client.process.pid, signal.SIGKILL)
        until(lambda: running.model("b").restarts == 2)
        assert open_stream.rest()[-1] == "[DONE]"
        assert running.model("a").restarts == 0
        assert (
            "edgekit_engine_restarts_total 2"
            in running.http.get(f"{running.server.url}/metrics").text
        )


def test_one_that_cannot_be_loaded_fails_alone(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b")]
    stubs = {"b": StubEngine([], tmp_path / "b.log", fatal="bad_model")}
    with fleet(tmp_path, *models, stubs=stubs, memory_budget_bytes=2) as running:
        for _ in range(2):
            refused = running.post(model="b")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "model_load_failed"
            assert "scripted failure" in refused.json()["error"]["message"]
        assert running.loads("b") == 1
        assert running.status() == {"a": "loaded", "b": "unloaded"}
        assert running.http.get(f"{running.server.url}/health").status_code == 200
        assert running.answer("a") == "a"


def test_ready_is_when_those_of_the_start_are(tmp_path: Path) -> None:
    models = [model(tmp_path, "a"), model(tmp_path, "b", preload=True), model(tmp_path, "c")]
    slow = {"b": StubEngine([], tmp_path / "b.log", load_s=2.0)}
    with fleet(tmp_path, *models, stubs=slow, wait=False) as running:
        until(lambda: running.server.app.state.router.served[0].status == "loaded")
        assert running.http.get(f"{running.server.url}/readyz").status_code == 503
        assert running.post(model="b").status_code == 503
        assert running.answer("a") == "a"
        until(lambda: running.http.get(f"{running.server.url}/readyz").status_code == 200)
        assert running.status() == {"a": "loaded", "b": "loaded", "c": "unloaded"}


def test_who_waits_at_the_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "GRACE_S", 0.3)
    models = [model(tmp_path, "a"), model(tmp_path, "b")]
    with concurrent.futures.ThreadPoolExecutor() as pool, httpx.Client(timeout=20) as client:
        with fleet(tmp_path, *models, memory_budget_bytes=1) as running:
            open_stream = stream(running, client, "a")
            waits = pool.submit(running.post, model="b")
            until(lambda: running.server.app.state.router.waiting == 1)
        assert waits.result(5).json()["error"]["code"] == "shutting_down"
        assert open_stream.rest()[-1]["error"]["code"] == "shutting_down"


def test_models_that_contradict_each_other_do_not_start(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), model(tmp_path, "b")
    missing = model(tmp_path, "m")
    missing.engine.model_path.unlink()
    with pytest.raises(ModelMissingError), fleet(tmp_path, missing):
        pass
    for models, budget, said in (
        ((a, model(tmp_path, "a")), None, "answer to the name 'a'"),
        ((a, model(tmp_path, "b", aliases=("a",))), None, "answer to the name 'a'"),
        ((a, model(tmp_path, "b", roles=("talk",))), None, "'talk' is no role"),
        ((a, model(tmp_path, "b", memory_bytes=None)), 4, "how much b takes"),
        ((a, model(tmp_path, "b", memory_bytes=5)), 4, "b takes"),
        ((a, model(tmp_path, "b", memory_bytes=4, pinned=True)), 4, "loaded at start"),
        ((model(tmp_path, "p", pinned=True), model(tmp_path, "b", memory_bytes=4)), 4, "pinned"),
    ):
        with (
            pytest.raises(ConfigError, match=said),
            fleet(tmp_path, *models, memory_budget_bytes=budget),
        ):
            pass
    del b
