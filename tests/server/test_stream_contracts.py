"""Seeded conversations on real weights, in every dialect: each stream keeps its contract.

Random turns, tools, limits, stop strings and cancels, several at once. What pocket says does not
matter; that each stream begins, goes on and ends as its strictest reader demands does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from edgekit_server.app import Server
from tests.server.test_agent_loop import TASKS, TOOLS
from tests.support.http_server import config_for, running
from tests.support.pocket import convert_pocket
from tests.support.talks import DIALECTS, Dialect, Talk, random_talk

N_CTX = 8192
N_SEQ = 4


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = convert_pocket(tmp_path_factory.mktemp("pocket"))
    config = config_for(path, keepalive_s=0.05)
    engine = replace(config.engine, model_id="pocket", n_ctx=N_CTX, n_seq_max=N_SEQ)
    with running(replace(config, engine=engine)) as server:
        yield server


def hold(server: Server, dialect: Dialect, seed: int) -> None:
    """Run one conversation and check its stream; one in seven clients leaves on the way."""
    talk = random_talk(seed, TASKS, TOOLS)
    leaves_after = random.Random(-seed).choice([0, 1, 400, *[None] * 18])
    raw = b""
    url = server.url + dialect.path
    with httpx.stream("POST", url, json=dialect.body(talk), timeout=60) as response:
        assert response.status_code == 200, (seed, response.read())
        for part in response.iter_raw():
            raw += part
            if leaves_after is not None and len(raw) > leaves_after:
                return
    try:
        dialect.check(talk, raw)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}\n{raw.decode()[-3000:]}") from error


def hold_all(server: Server, dialect: Dialect, n: int) -> None:
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(hold, server, dialect, seed) for seed in range(n)]:
            done.result()
    # Nothing of those who left goes on: one more is served at once.
    hold(server, dialect, 10_000)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_hundred_conversations(pocket: Server, name: str) -> None:
    hold_all(pocket, DIALECTS[name], 125)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIALECTS)
def test_five_hundred_conversations(pocket: Server, name: str) -> None:
    hold_all(pocket, DIALECTS[name], 500)


@pytest.mark.parametrize("name", DIALECTS)
def test_the_last_token_that_fits_and_the_first_that_does_not(pocket: Server, name: str) -> None:
    """A needle at the end of a context that is full but for one token, full, and too full."""
    dialect = DIALECTS[name]
    with httpx.Client(base_url=pocket.url, timeout=60) as http:

        def ask(n_words: int) -> httpx.Response:
            talk = Talk([("user", " the" * n_words + " needle")], limit=1, stream=False)
            return http.post(dialect.path, json=dialect.body(talk))

        # Counted by the server itself, in the dialect that counts.
        counted = http.post(
            "/v1/messages/count_tokens",
            json=DIALECTS["messages"].body(Talk([("user", " the" * 100 + " needle")])),
        ).json()["input_tokens"]
        around = counted - 100
        most = N_CTX - 1 - around
        for n_words in (most - 1, most):
            assert ask(n_words).status_code == 200, ask(n_words).text
        refused = ask(most + 1)
        assert refused.status_code == 400
        text = dialect.overflow(refused.json())
        assert str(N_CTX) in text


def test_the_needle_in_raw_text_and_in_vectors(pocket: Server) -> None:
    """Ollama's generate and both kinds of embeddings: the last token that fits counts, and one
    more is an error that says the limit."""
    with httpx.Client(base_url=pocket.url, timeout=200) as http:
        around = len(
            http.post("/tokenize", json={"content": "x", "add_special": True}).json()["tokens"]
        )

        def text(n_tokens: int, last: str) -> str:
            return " the" * (n_tokens - around) + last

        def generate(n_tokens: int) -> httpx.Response:
            body = {"model": "pocket", "prompt": text(n_tokens, " x"), "raw": True, "stream": False}
            return http.post("/api/generate", json=body | {"options": {"num_predict": 1}})

        for n_tokens in (N_CTX - 2, N_CTX - 1):
            assert generate(n_tokens).json()["prompt_eval_count"] == n_tokens
        refused = generate(N_CTX)
        assert refused.status_code == 400
        assert str(N_CTX) in refused.json()["error"]

        limit = 2048  # EngineConfig.embed_ctx
        for path, field in (("/v1/embeddings", "input"), ("/api/embed", "input")):

            def vector(n_tokens: int, last: str, path: str = path, field: str = field) -> object:
                body = {"model": "pocket", field: text(n_tokens, last)}
                answer = http.post(path, json=body)
                assert answer.status_code == 200, answer.text
                found = answer.json()
                return (
                    found["embeddings"][0]
                    if path == "/api/embed"
                    else found["data"][0]["embedding"]
                )

            for n_tokens in (limit - 1, limit):
                assert vector(n_tokens, " x") != vector(n_tokens, " y"), "nothing is cut off"
            over = http.post(path, json={"model": "pocket", field: text(limit + 1, " x")})
            assert over.status_code == 400
            assert str(limit) in over.text
