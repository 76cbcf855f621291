"""The newest fill-in-the-middle request of a client wins."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit_server.app import Server
from edgekit_server.newest import MOST_CLIENTS, Newest
from tests.support import sse
from tests.support.http_server import config_for, running
from tests.support.stub_engine import Rule, StubEngine, said

RULES = [
    Rule("slow", said("x" * 500), pause_s=0.01),
    Rule("unheard", said("x"), silent_s=5.0),
]


@pytest.fixture
def stub(tmp_path: Path) -> StubEngine:
    return StubEngine(RULES, tmp_path / "stub.log")


@pytest.fixture
def server(stub: StubEngine, gguf: Path) -> Iterator[Server]:
    with running(config_for(gguf, keepalive_s=0.1), stub.spawn) as server:
        yield server


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor() as made:
        yield made


def fill(server: Server, prompt: str, headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"prompt": prompt, "suffix": "end"}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=10)


def begun(stub: StubEngine, number: int = 1) -> None:
    """Wait until the engine has so many requests."""
    end = time.monotonic() + 5
    while sum(line.startswith("generate") for line in stub.lines()) < number:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("text", ["slow", "unheard"])
def test_a_whole_answer_that_is_overtaken_is_a_499(
    server: Server, stub: StubEngine, pool: Any, text: str
) -> None:
    older = pool.submit(fill, server, text)
    begun(stub)
    newer = fill(server, "quick")
    assert newer.json()["choices"][0]["text"] == "hello"
    refused = older.result(2)
    assert refused.status_code == 499
    assert refused.json()["error"]["code"] == "request_superseded"
    lines = stub.lines()
    # The engine is told before it gets the newer one.
    assert [line.split()[0] for line in lines] == ["generate", "cancel", "generate"]
    assert lines[1] == "cancel 1"


def test_a_stream_that_is_overtaken_ends_in_order(server: Server) -> None:
    body = {"prompt": "slow", "suffix": "end", "stream": True, "n": 2}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=10) as response:
        lines = response.iter_lines()
        next(line for line in lines if "x" in line)
        assert fill(server, "quick").status_code == 200
        events = sse.events(lines)
    assert events[-1] == "[DONE]"
    ends = [c["choices"][0]["finish_reason"] for c in events[:-1]]
    # The text was cut, and says so.
    assert [end for end in ends if end] == ["length", "length"]


def test_other_requests_overtake_nothing(server: Server, stub: StubEngine, pool: Any) -> None:
    url = f"{server.url}/v1/completions"
    mine = {"x-session-id": "mine"}
    older = pool.submit(fill, server, "slow", mine)
    begun(stub)
    assert httpx.post(url, json={"prompt": "quick"}, headers=mine).status_code == 200
    others = [
        {"x-session-id": "yours"},
        {**mine, "authorization": "Bearer another"},
        {"user-agent": "other"},
        {"x-forwarded-for": "10.0.0.1"},
    ]
    for headers in others:
        assert fill(server, "quick", headers).status_code == 200
    assert not older.done()
    # The program does not matter within one session.
    assert fill(server, "quick", {**mine, "user-agent": "other"}).status_code == 200
    assert older.result(2).status_code == 499


def test_only_the_newest_of_many_survives(server: Server, stub: StubEngine, pool: Any) -> None:
    older = []
    for number in range(5):
        older.append(pool.submit(fill, server, f"slow {number}"))
        begun(stub, number + 1)
    assert fill(server, "quick").status_code == 200
    assert [answer.result(2).status_code for answer in older] == [499] * 5
    assert server.app.state.router.client.in_flight == 0


def test_a_finished_one_is_not_touched(server: Server, stub: StubEngine) -> None:
    for _ in range(3):
        assert fill(server, "quick").status_code == 200
    assert not [line for line in stub.lines() if line.startswith("cancel")]


async def _counts() -> list[int]:
    newest = Newest()
    for number in range(MOST_CLIENTS + 5):
        newest.turn(str(number))
    first = newest.turn("0")
    newest.turn("0")
    return [len(newest._turns), int(first.superseded.is_set())]


def test_clients_are_forgotten_in_the_end() -> None:
    import asyncio

    assert asyncio.run(_counts()) == [MOST_CLIENTS, 1]
