"""Which model is meant when none is named, and what a loaded one can do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgekit_server.api.early import error_event
from edgekit_server.config import EngineConfig, ModelConfig
from edgekit_server.engine.wire import Hello, Vectors
from edgekit_server.roles import capabilities, pick
from tests.support.stub_engine import CONTROL, TEMPLATE

FIM = {"prefix": "[PREFIX]", "suffix": "[SUFFIX]"}
HELLO = Hello(
    model_id="m", architecture="llama", description="", n_params=1, size_bytes=1, n_vocab=10,
    n_ctx_train=64, n_ctx=64, n_ctx_seq=64, n_seq_max=1, chat_template=None, bos=None, eos=None,
    add_bos=False, fim={}, control_tokens=[], reasons={},
)  # fmt: skip
VECTORS = Vectors("mean", 8, 64, None, None, None, None)
KNOWN = {
    "?": None,
    "chat": replace(HELLO, chat_template="{{ messages[0].content }}"),
    "fim": replace(HELLO, fim=FIM),
    "base": HELLO,
    "encoder": replace(HELLO, generates=False, vectors=VECTORS),
    "reranker": replace(HELLO, generates=False, vectors=replace(VECTORS, pooling="rank")),
}


@dataclass(frozen=True)
class Candidate:
    config: ModelConfig
    hello: Hello | None


def candidates(text: str) -> list[Candidate]:
    """`chat:completion fim`: a chat model for completion, and one that fills in, for anything."""
    found = []
    for word in text.split():
        kind, _, roles = word.partition(":")
        engine = EngineConfig(Path("m"), word)
        config = ModelConfig(engine, roles=tuple(roles.split("+")) if roles else ())
        found.append(Candidate(config, KNOWN[kind]))
    return found


@pytest.mark.parametrize(
    ("models", "role", "number"),
    [
        ("?", "chat", 0),
        ("chat", "embeddings", 0),
        # The first that may be able to; what was never loaded may.
        ("chat fim", "chat", 0),
        ("base chat", "chat", 1),
        ("chat fim", "fim", 1),
        ("chat ?", "fim", 1),
        ("? fim", "fim", 0),
        ("chat encoder", "embeddings", 1),
        ("chat encoder reranker", "rerank", 2),
        # Nobody can: the first one says so.
        ("chat base", "rerank", 0),
        # Said roles count before any guess.
        ("chat:chat ?:completion", "completion", 1),
        ("fim:chat fim:completion", "fim", 1),
        ("fim:chat base:completion", "fim", 1),
        ("chat:chat+completion fim:completion", "fim", 1),
        ("chat:chat ?:embeddings", "embeddings", 1),
        ("chat:chat encoder", "embeddings", 1),
        # No model of that role and none without roles: the first one.
        ("chat:chat fim:completion", "embeddings", 0),
    ],
)
def test_who_answers_a_request_without_a_name(models: str, role: str, number: int) -> None:
    assert pick(candidates(models), role) == number


@pytest.mark.parametrize(
    ("hello", "found"),
    [
        (HELLO, ("completion",)),
        (replace(HELLO, fim=FIM), ("completion", "fim")),
        (replace(HELLO, fim={"prefix": "<p>"}), ("completion",)),
        (
            replace(HELLO, chat_template=TEMPLATE, control_tokens=CONTROL, vectors=VECTORS),
            ("chat", "completion", "tools", "embeddings"),
        ),
        (KNOWN["encoder"], ("embeddings",)),
        (KNOWN["reranker"], ("rerank",)),
        (replace(HELLO, vectors=replace(VECTORS, pooling="none")), ("completion",)),
    ],
)
def test_what_a_loaded_model_can_do(hello: Hello, found: tuple[str, ...]) -> None:
    assert capabilities(hello) == found


@pytest.mark.parametrize(
    ("path", "body", "event"),
    [
        ("/v1/completions", b'{"error":{"code":"x"}}', b'data: {"error":{"code":"x"}}\n\n'),
        (
            "/v1/messages",
            b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}',
            b"event: error\n"
            b'data: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n',
        ),
    ],
)
def test_a_refusal_after_the_headers_is_an_event(path: str, body: bytes, event: bytes) -> None:
    assert error_event(path, body) == event


def test_a_refusal_that_is_no_json_still_is_one() -> None:
    for path in ("/v1/completions", "/v1/messages", "/v1/responses"):
        assert b"refused" in error_event(path, b"")
