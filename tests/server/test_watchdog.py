"""Engines that live and get nothing done: judged by the clock, then really stopped or looping."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit_server.app import Server
from edgekit_server.config import EngineConfig
from edgekit_server.engine import spawn, wire
from edgekit_server.watchdog import Watchdog
from tests.support import sse
from tests.support.gguf_models import write_model
from tests.support.http_server import config_for, running

LIMIT_S = 1.5
ROOT = Path(__file__).resolve().parents[2]


class Time:
    """A clock that only moves when told, and a dog that looks as often as it should."""

    def __init__(self, limit_s: float = 80.0) -> None:
        self.now = 0.0
        self.dog = Watchdog(limit_s, lambda: self.now)

    def passes(self, seconds: float, *, running: bool = True, unanswered: bool = False) -> object:
        """Return what stalled first, or None."""
        end = self.now + seconds
        while self.now < end:
            self.now += self.dog.interval_s
            if found := self.dog.stalled(running=running, unanswered=unanswered):
                return found
        return None


def test_an_idle_engine_may_stand_still_for_ever() -> None:
    time = Time()
    assert time.passes(10_000, running=False) is None
    assert time.passes(70) is None
    assert time.passes(20) is not None


def test_work_of_any_kind_is_progress() -> None:
    time = Time()
    for count in range(20):
        time.dog.pulse(count + 1, 0)
        assert time.passes(70) is None
    for _ in range(20):
        time.dog.output()
        assert time.passes(70) is None
    time.dog.pulse(20, 5)  # the same work as before: the intake's messages alone are no work
    assert time.passes(20) is not None


def test_an_intake_that_takes_nothing_while_others_run() -> None:
    time = Time()
    for count in range(1, 3):
        time.dog.pulse(count, 7)
        found = time.passes(70, unanswered=True)
    assert "took no request" in str(found)


def test_a_front_that_slept_gives_the_child_its_time_again() -> None:
    time = Time()
    time.passes(60)
    time.now += 10_000
    assert time.dog.stalled(running=True, unanswered=True) is None
    assert time.passes(70) is None
    assert time.passes(20) is not None


# -- real children ----------------------------------------------------------------------------

SPIN = """
import sys, time
from edgekit_server.engine import loop, native, worker
real = native.Context.decode
def decode(self, batch):
    if 200 in [batch.token[i] for i in range(batch.n_tokens)]:
        while True:
            {hang}
    return real(self, batch)
native.Context.decode = decode
sys.exit(worker.main(sys.argv[1:]))
"""
HANGS = {
    "a loop in Python": "pass",
    "a C call that keeps the GIL": "__import__('re').match('(a*)*b', 'a' * 40)",
    "a C call that waits": "time.sleep(1000)",
}


def _spawn_spinning(
    hang: str, config: EngineConfig
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a real engine child that hangs once token 200 is in a batch."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", SPIN.format(hang=hang), "--fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env=spawn.environment(),
            stderr=subprocess.DEVNULL,
        )
    ours.sendall(wire.encode_config(config))
    return process, ours


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def server(model: Path) -> Iterator[Server]:
    with running(config_for(model, watchdog_s=LIMIT_S, keepalive_s=0.2)) as made:
        yield made


def _complete(server: Server, token: int, **more: Any) -> httpx.Response:
    body = {"prompt": [9, token], "max_tokens": 4, **more}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)


def test_a_stopped_child_is_replaced_and_its_stream_ends_typed(server: Server) -> None:
    process = server.app.state.router.client.process
    url, body = f"{server.url}/v1/completions", {"prompt": [9], "stream": True, "ignore_eos": True}
    with httpx.stream("POST", url, json=body, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        found = sse.events(lines)
    assert found[-1]["error"]["code"] == "engine_stalled"
    assert LIMIT_S / 2 < time.monotonic() - began < LIMIT_S * 2 + 4
    assert process.wait(10) == -signal.SIGKILL
    assert _complete(server, 10).status_code == 200
    assert server.app.state.router.client.process.pid != process.pid


def test_an_idle_stopped_child_is_noticed_by_the_next_request(server: Server) -> None:
    process = server.app.state.router.client.process
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(LIMIT_S * 1.5)
    assert process.poll() is None
    response = _complete(server, 10)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_stalled")
    assert "took no request" in response.json()["error"]["message"]
    assert _complete(server, 10).status_code == 200


@pytest.mark.parametrize("hang", HANGS)
def test_a_loop_that_never_ends(model: Path, hang: str) -> None:
    config = config_for(model, watchdog_s=LIMIT_S)
    with running(config, partial(_spawn_spinning, HANGS[hang])) as server:
        assert _complete(server, 10).status_code == 200
        process = server.app.state.router.client.process
        response = _complete(server, 200)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_stalled")
        assert response.headers["retry-after"]
        assert process.wait(10) == -signal.SIGABRT
        assert _complete(server, 10).status_code == 200


def test_clients_that_leave_too_soon_hide_nothing(model: Path) -> None:
    """The engine hangs over a request whose client gave up long before the limit."""
    config = config_for(model, watchdog_s=LIMIT_S)
    with running(config, partial(_spawn_spinning, "time.sleep(1000)")) as server:
        client = server.app.state.router.client
        for n_restarts in (1, 2):
            body = {"prompt": [9, 200], "max_tokens": 4}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.5)
            end = time.monotonic() + 15
            while client.restarts < n_restarts:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert _complete(server, 200).json()["error"]["code"] == "request_kills_engine"
        assert _complete(server, 10).status_code == 200


def test_a_request_that_stalls_the_engine_twice_is_refused(model: Path) -> None:
    config = config_for(model, watchdog_s=LIMIT_S)
    with running(config, partial(_spawn_spinning, "pass")) as server:
        codes = [_complete(server, 200).json()["error"]["code"] for _ in range(3)]
        assert codes == ["engine_stalled", "engine_stalled", "request_kills_engine"]
        assert _complete(server, 10).status_code == 200


def test_a_long_step_is_no_stall(model: Path) -> None:
    """One step of many nodes, each shorter than the limit: the nodes are the signs of life."""
    from edgekit_server.engine.pulse import Heart, NodeBeat
    from tests.support.engine import driver

    beat = NodeBeat()
    if beat.function is None:
        pytest.skip("no C function to count nodes with")
    heart = Heart(lambda _: None, beat, n_steps=lambda: 0, n_taken=lambda: 0)
    with driver(model) as engine:
        engine.context.on_node(beat.function, beat.data)
        assert heart.pulse() is None
        engine.submit(range(8, 100), 2)
        engine.loop.step()
        first = heart.pulse()
        assert first == wire.Pulse(worked=1, taken=0)
        assert heart.pulse() is None
        engine.loop.step()
        assert heart.pulse() == wire.Pulse(worked=2, taken=0)
        engine.context.on_node(None, 0)
