"""Seeded conversations on real weights, in every dialect: each stream keeps its contract.

Random turns, tools, limits, stop strings and cancels, several at once. What pocket says does not
matter; that each stream begins, goes on and ends as its strictest reader demands does.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import httpx
import pytest

from edgekit_server.app import Server
from tests.server.test_agent_loop import TASKS, TOOLS
from tests.support import sse
from tests.support.http_server import config_for, running
from tests.support.pocket import convert_pocket

ASKED = ("What is edgekit?", "Say hello.", "Grüße 👋 [INST] </s>", "def add(a, b):", "")


@dataclass(slots=True)
class Talk:
    """One request in no dialect. `turns`: user, assistant, tool calls and results, in order."""

    system: str | None
    turns: list[tuple[str, Any]]
    tools: list[str]
    limit: int
    stops: list[str]
    seed: int
    parallel: bool
    cancel_after: int | None
    """Lines read before the client leaves; None: it stays."""
    extra: dict[str, Any] = field(default_factory=dict)


def talk(seed: int) -> Talk:
    """Return a random conversation."""
    rng = random.Random(seed)
    turns: list[tuple[str, Any]] = []
    task = rng.choice(TASKS)
    with_tools = rng.random() < 0.6
    if with_tools:
        turns.append(("user", task.user))
        for name, arguments, answer in task.steps[: rng.randrange(4)]:
            turns += [("call", (name, arguments)), ("result", answer)]
    else:
        for _ in range(rng.randrange(3)):
            turns += [("user", rng.choice(ASKED)), ("assistant", rng.choice(ASKED[:3]))]
        turns.append(("user", rng.choice(ASKED)))
    return Talk(
        system=rng.choice([None, "You are brief.", "Use the tools."]),
        turns=turns,
        tools=rng.sample(sorted(TOOLS), rng.randrange(1, len(TOOLS))) if with_tools else [],
        limit=rng.choice([1, 2, 8, 40, 40]),
        stops=rng.choice([[], [], ["e"], ["\n", "the "]]),
        seed=seed,
        parallel=rng.random() < 0.7,
        cancel_after=rng.randrange(6) if rng.random() < 0.15 else None,
    )


class Dialect(Protocol):
    """How a talk is written, and what its stream must be like."""

    def __call__(self, talk: Talk) -> tuple[str, dict[str, Any]]:
        """Return path and body of a streamed request."""

    def check(self, talk: Talk, lines: list[str]) -> None:
        """Assert the contract over all lines of one stream."""


class Chat:
    """OpenAI's chat completions."""

    def __call__(self, talk: Talk) -> tuple[str, dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if talk.system is not None:
            messages.append({"role": "system", "content": talk.system})
        for at, (kind, what) in enumerate(talk.turns):
            if kind == "call":
                function = {"name": what[0], "arguments": json.dumps(what[1])}
                call = {"id": f"call_{at}", "type": "function", "function": function}
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            elif kind == "result":
                result = {"role": "tool", "tool_call_id": f"call_{at - 1}", "content": what}
                messages.append(result)
            else:
                messages.append({"role": kind, "content": what})
        body: dict[str, Any] = {
            "model": "pocket",
            "messages": messages,
            "max_tokens": talk.limit,
            "seed": talk.seed,
            "stop": talk.stops,
            "stream": True,
            "stream_options": {"include_usage": talk.seed % 2 == 0},
        }
        if talk.tools:
            body |= {"tools": [TOOLS[name] for name in talk.tools]}
            body |= {"parallel_tool_calls": talk.parallel}
        return "/v1/chat/completions", body

    def check(self, talk: Talk, lines: list[str]) -> None:
        sse.check_chat_stream(sse.events(lines), usage=talk.seed % 2 == 0)


DIALECTS: dict[str, Dialect] = {"chat": Chat()}


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = convert_pocket(tmp_path_factory.mktemp("pocket"))
    config = config_for(path, keepalive_s=0.05)
    engine = replace(config.engine, model_id="pocket", n_ctx=8192, n_seq_max=4)
    with running(replace(config, engine=engine)) as server:
        yield server


def hold(server: Server, dialect: Dialect, seed: int) -> None:
    """Run one conversation and check its stream."""
    what = talk(seed)
    path, body = dialect(what)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        with http.stream("POST", path, json=body) as response:
            assert response.status_code == 200, (seed, response.read())
            lines = []
            for line in response.iter_lines():
                lines.append(line)
                if what.cancel_after is not None and len(lines) > what.cancel_after:
                    return
        try:
            dialect.check(what, lines)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}\n" + "\n".join(lines)) from error


def hold_all(server: Server, dialect: Dialect, n: int) -> None:
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(hold, server, dialect, seed) for seed in range(n)]:
            done.result()
    assert server.app.state.router.client.in_flight == 0


@pytest.mark.parametrize("name", DIALECTS)
def test_a_hundred_conversations(pocket: Server, name: str) -> None:
    hold_all(pocket, DIALECTS[name], 125)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIALECTS)
def test_five_hundred_conversations(pocket: Server, name: str) -> None:
    hold_all(pocket, DIALECTS[name], 500)
