"""Requests that kill the engine: told from those that only ran beside them."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit_server.app import Server
from edgekit_server.engine.wire import Generate, Grammar, Sampling
from edgekit_server.suspects import MEMORY_S, Suspects, content_key
from tests.support import sse
from tests.support.http_server import config_for, running
from tests.support.stub_engine import Rule, StubEngine, said

BASE = Generate(
    1, [("hi", True)], 5, sampling=Sampling(seed=3), grammar=Grammar("regex", "a+"), deadline_s=9.0
)


@pytest.mark.parametrize(
    "same",
    [
        replace(BASE, id=2),
        replace(BASE, deadline_s=None),
        replace(BASE, sampling=Sampling(seed=4)),
        replace(BASE, sampling=Sampling(seed=None)),
    ],
)
def test_a_retry_and_a_sibling_have_the_same_key(same: Generate) -> None:
    assert content_key(same) == content_key(BASE)


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, prompt=[("ho", True)]),
        replace(BASE, prompt=[("hi", False)]),
        replace(BASE, prompt=[1, 2]),
        replace(BASE, max_tokens=6),
        replace(BASE, grammar=None),
        replace(BASE, grammar=Grammar("regex", "b+")),
        replace(BASE, grammar=Grammar("lark", "a+")),
        replace(BASE, sampling=Sampling(seed=3, temperature=0.0)),
        replace(BASE, sampling=Sampling(seed=3, n_logprobs=2)),
        replace(BASE, context_shift=True),
    ],
)
def test_other_work_has_another_key(other: Generate) -> None:
    assert content_key(other) != content_key(BASE)


KILLER, ONE, TWO = b"killer", b"one", b"two"


def test_who_ran_at_both_deaths_is_guilty() -> None:
    suspects = Suspects()
    suspects.blame([KILLER, ONE])
    suspects.blame([TWO, KILLER])
    assert [suspects.refused(k) for k in (KILLER, ONE, TWO)] == [True, False, False]


def test_choices_of_one_request_count_once() -> None:
    suspects = Suspects()
    suspects.blame([KILLER] * 3)
    assert not suspects.refused(KILLER)
    suspects.blame([KILLER] * 3)
    assert suspects.refused(KILLER)


def test_several_suspects_run_one_at_a_time_until_one_is_found() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.blame([KILLER, ONE, TWO])
    assert not any(suspects.refused(k) for k in (KILLER, ONE, TWO))
    assert suspects.must_wait([ONE], {KILLER})
    assert suspects.must_wait([b"new", ONE], {KILLER})
    assert not suspects.must_wait([ONE], {ONE, b"new"})
    assert not suspects.must_wait([b"new"], {KILLER})
    suspects.clear(ONE)
    suspects.blame([KILLER, b"new", ONE])
    assert [suspects.refused(k) for k in (KILLER, ONE, TWO, b"new")] == [True, False, False, False]
    assert not suspects.must_wait([TWO], {ONE})


def test_an_hour_heals() -> None:
    now = [0.0]
    suspects = Suspects(clock=lambda: now[0])
    for _ in range(2):
        suspects.blame([KILLER])
    assert suspects.refused(KILLER)
    now[0] = MEMORY_S + 1
    assert not suspects.refused(KILLER)
    suspects.blame([KILLER])
    assert not suspects.refused(KILLER)


# -- through HTTP ------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    rules = [
        Rule("poison", said("abc"), die_after=1, pause_s=0.2),
        Rule("late", said("a"), die_after=0, silent_s=0.5),
        Rule("slow", said("x" * 40), pause_s=0.05),
    ]
    with running(config_for(gguf), StubEngine(rules, tmp_path / "log").spawn) as made:
        yield made


def _chat(server: Server, text: str, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)


def test_streams_and_several_choices_are_the_same_request(server: Server) -> None:
    assert _chat(server, "poison", n=3, seed=1).json()["error"]["code"] == "engine_died"
    body = {"messages": [{"role": "user", "content": "poison"}], "stream": True}
    _, found = sse.post(f"{server.url}/v1/chat/completions", body)
    assert found[-1]["error"]["code"] == "engine_died"
    for stream in (False, True):
        refused = _chat(server, "poison", stream=stream, n=2)
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            400,
            "request_kills_engine",
        )
    assert _chat(server, "poison", max_tokens=3).status_code == 503  # other work, so far


def test_clients_that_repeat_everything_are_told_apart(server: Server) -> None:
    """Two honest clients beside a poisonous one, each trying again until it gets an answer."""

    def insist(text: str) -> tuple[int, str]:
        end = time.monotonic() + 25
        while (answer := _chat(server, text)).status_code == 503:
            assert time.monotonic() < end
        return answer.status_code, answer.json().get("error", {}).get("code", "")

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(insist, ["slow one", "poison", "slow two"]))
    assert found == [(200, ""), (400, "request_kills_engine"), (200, "")]
    assert server.app.state.router.client.restarts <= 4


def test_a_client_that_left_is_blamed_all_the_same(server: Server) -> None:
    for _ in range(2):
        body = {"messages": [{"role": "user", "content": "late"}]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.15)
        client = server.app.state.router.client
        before = client.restarts
        end = time.monotonic() + 10
        while client.restarts == before:
            assert time.monotonic() < end
            time.sleep(0.02)
    assert _chat(server, "late").json()["error"]["code"] == "request_kills_engine"
