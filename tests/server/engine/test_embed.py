"""Vectors and scores on real llama.cpp, against the plainest use of it there is."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit_server.config import EngineConfig
from edgekit_server.engine import embedding, native, wire
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.embed import Embedder, Job, Shape, normalised, rows
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.engine.pooled import Facts
from edgekit_server.engine.wire import Embed, Embedded, Generate, Sampling
from edgekit_server.errors import ConfigError
from tests.support.child import Child, child, outputs, settings
from tests.support.vector_models import write_bert, write_reranker

TEXTS = [list(range(10 + i, 10 + i + n)) for i, n in enumerate((1, 2, 30, 64, 65, 200, 7, 3))]
FACTS = Facts(None, True, False, 64, 1, (), None, False, False, None)


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Iterator[Child]:
    with child(settings(tiny_model, n_ubatch=64)) as made:
        made.hello = made.next()  # type: ignore[assignment]
        yield made


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "bert.gguf"
    return write_bert(path, pooling=gguf.PoolingType.MEAN)


def plain(path: Path, texts: list[list[int]], pooling: str) -> list[NDArray[np.float32]]:
    """Each text alone, in one batch, with llama.cpp's own pooling and all rows output."""
    options = ContextOptions(512, 1, 512, 512, 1, n_outputs_max=512, pooling=pooling)
    found = []
    with native.opened(ModelOptions(path, 0), options, native.capture_log()) as (model, context):
        facts = native.vector_facts(model)
        n_out = facts.n_scores if pooling == "rank" else facts.n_embd
        pooled = native.vectors(context, n_out)
        for text in texts:
            if facts.causal:
                context.seq_rm(0)
            batch = Batch(512)
            batch.add(0, 0, array("i", text), output=True, n_drafts=len(text) - 1)
            assert pooled.decode(batch.ready(), vectors=True) == 0
            found.append(pooled.vector(0))
    return found


def ask(engine: Child, question: Embed) -> list[NDArray[np.float32]]:
    engine.send(question)
    reply = engine.next()
    assert isinstance(reply, Embedded), reply
    assert reply.id == question.id
    return [np.frombuffer(vector, "<f4") for vector in reply.vectors]


def test_a_decoder_gives_its_last_row(decoder: Child, tiny_model: Path) -> None:
    """Long texts go in several passes, short ones share one: neither may show."""
    assert decoder.hello is not None
    assert decoder.hello.vectors is not None
    assert decoder.hello.vectors.pooling == "last"
    raw = plain(tiny_model, TEXTS, "last")
    found = ask(decoder, Embed(1, list(TEXTS)))
    for vector, expected in zip(found, raw, strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-3)
    unscaled = ask(decoder, Embed(2, [TEXTS[2]], norm=-1))
    np.testing.assert_allclose(unscaled[0], raw[2], rtol=0.02, atol=0.02)


def test_dimensions_are_cut_and_scaled_again(decoder: Child) -> None:
    (whole,) = ask(decoder, Embed(1, [TEXTS[3]]))
    (cut,) = ask(decoder, Embed(2, [TEXTS[3]], dimensions=10))
    np.testing.assert_allclose(cut, whole[:10] / np.linalg.norm(whole[:10]), atol=1e-6)


def test_mean_of_a_decoder(tiny_model: Path) -> None:
    texts = [text for text in TEXTS if len(text) <= 64]
    with child(settings(tiny_model, pooling="mean", n_ubatch=64)) as one:
        one.next()
        found = ask(one, Embed(1, list(texts)))
        one.send(Embed(2, [list(range(10, 75))]))
        refusal = one.next()
    for vector, expected in zip(found, plain(tiny_model, texts, "mean"), strict=True):
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-3)
    assert isinstance(refusal, wire.Rejected)
    assert (refusal.code, refusal.n_prompt) == ("input_too_long", 65)


def test_an_encoder_makes_vectors_only(bert: Path) -> None:
    texts = [[2, *(5 + i % 50 for i in range(n)), 3] for n in (1, 5, 40, 62, 9, 9)]
    with child(settings(bert)) as one:
        hello = one.next()
        assert isinstance(hello, wire.Hello)
        assert hello.vectors is not None
        assert (hello.generates, hello.vectors.pooling, hello.vectors.n_ctx) == (False, "mean", 64)
        assert hello.vectors.sep == "[SEP]"
        found = ask(one, Embed(1, list(texts)))
        one.send(Generate(2, [5, 6], 3))
        refusal = one.next()
        again = ask(one, Embed(3, [[("the cat", True)], [("the dog", True)]]))
    for vector, expected in zip(found, plain(bert, texts, "mean"), strict=True):
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-3)
    assert isinstance(refusal, wire.Rejected)
    assert refusal.code == "no_generation"
    assert not np.allclose(again[0], again[1])


def test_a_decoder_that_ranks(tmp_path: Path) -> None:
    path = write_reranker(tmp_path / "rank.gguf")
    with child(settings(path, n_ubatch=64)) as one:
        hello = one.next()
        assert isinstance(hello, wire.Hello)
        assert hello.vectors is not None
        assert (hello.vectors.pooling, hello.vectors.n_out) == ("rank", 2)
        assert hello.vectors.rank_template is not None
        assert "{query}" in hello.vectors.rank_template
        found = ask(one, Embed(1, list(TEXTS)))
    for scores, expected in zip(found, plain(path, TEXTS, "rank"), strict=True):
        np.testing.assert_allclose(scores, expected, atol=2e-3)
        assert scores.sum() == pytest.approx(1.0, abs=1e-4)


def test_streams_go_on_between_passes(decoder: Child) -> None:
    decoder.send(Generate(1, TEXTS[2], 200, ignore_eos=True, sampling=Sampling(temperature=0.0)))
    decoder.until(lambda m: bool(outputs(m)))
    decoder.send(Embed(2, [list(range(9, 209))] * 12))
    seen = decoder.until(lambda m: isinstance(m, Embedded))
    # 12 texts of 200 tokens take 38 passes of 64 rows, and a step comes between two of them.
    assert sum(bool(outputs(m)) for m in seen) >= 30
    decoder.send(wire.Cancel(1))
    decoder.until(lambda m: any(o.finish for o in outputs(m)))


def test_a_question_does_not_wait_behind_an_index(decoder: Child) -> None:
    decoder.send(Embed(1, [list(range(9, 209))] * 60))
    decoder.send(Embed(2, [[9, 10]]))
    first = decoder.next()
    assert isinstance(first, Embedded)
    assert first.id == 2
    decoder.send(wire.Cancel(1))
    assert len(ask(decoder, Embed(3, [[11]]))) == 1


@pytest.mark.parametrize(
    ("prompts", "dimensions", "code"),
    [
        ([[]], None, "empty_prompt"),
        ([[9], [5000]], None, "bad_token"),
        ([[9] * 2000, [9] * 2049], None, "input_too_long"),
        ([[("ab " * 400_000, False)]], None, "input_too_long"),
        ([[9]], 65, "bad_dimensions"),
    ],
)
def test_refusals(
    decoder: Child, prompts: list[list[int]], dimensions: int | None, code: str
) -> None:
    decoder.send(Embed(7, list(prompts), dimensions=dimensions))
    refusal = decoder.next()
    assert isinstance(refusal, wire.Rejected)
    assert (refusal.id, refusal.code) == (7, code)


def test_tokens_and_their_bytes(decoder: Child) -> None:
    decoder.send(wire.Tokenize(1, [("[INST]", True), ("é[INST]", False)], pieces=True))
    reply = decoder.next()
    assert isinstance(reply, wire.Tokens)
    assert reply.pieces[:3] == [b"[INST]", b"\xc3", b"\xa9"]
    decoder.send(wire.Tokenize(2, reply.tokens, pieces=True))
    back = decoder.next()
    assert isinstance(back, wire.Tokens)
    assert b"".join(back.pieces).decode() == "[INST]é[INST]"
    decoder.send(wire.Tokenize(3, [1, 99999]))
    refusal = decoder.next()
    assert isinstance(refusal, wire.Rejected)
    assert refusal.code == "bad_token"


@given(st.lists(st.integers(1, 300), min_size=1, max_size=16), st.integers(16, 64))
def test_rows_end_every_text(remaining: list[int], n_rows: int) -> None:
    passes = 0
    while True:
        ends, counts = rows(remaining, n_rows, 16)
        assert 0 < sum(counts) <= n_rows
        passes += 1
        if ends:
            assert counts == remaining
            assert sum(counts) <= 16
            break
        remaining = [n - count for n, count in zip(remaining, counts, strict=True)]
        assert min(remaining) >= 1
    assert passes <= sum(remaining) + 16 * 300 // n_rows + 2


def test_normalised() -> None:
    vector = np.array([3, -4], np.float32)
    assert normalised(vector, 2).tolist() == pytest.approx([0.6, -0.8])
    assert normalised(vector, -1).tolist() == [3, -4]
    assert normalised(vector, 1).tolist() == pytest.approx([3 / 7, -4 / 7])
    assert normalised(vector, 0).tolist() == pytest.approx([24570, -32760])
    assert normalised(np.zeros(2, np.float32), 2).tolist() == [0, 0]
    assert normalised(vector, 2, 1).tolist() == [1.0]


def test_a_context_that_cannot_be_made_refuses_and_is_tried_again() -> None:
    sent: list[wire.Message] = []

    def broken() -> native.Context:
        raise ConfigError("no room", code="out_of_memory")

    shape = Shape("last", False, 4, 64, 64, 16, 16)
    embedder = Embedder(shape, broken, sent.append)  # type: ignore[arg-type]
    for number in (1, 2):
        embedder.submit(Job(number, [array("i", [1])]))
        assert not embedder.turn()
    assert [(m.id, m.code) for m in sent if isinstance(m, wire.Rejected)] == [
        (1, "out_of_memory"),
        (2, "out_of_memory"),
    ]


def test_the_choice_of_pooling() -> None:
    config = EngineConfig(Path(), "m", n_ubatch=256)
    shape, why = embedding.choose(config, FACTS, 4096, encoder=False)
    assert (shape.pooling, shape.whole, shape.n_ctx) == ("last", False, 2048)
    assert (shape.n_rows, shape.n_outputs) == (256, 32)
    assert "does not say" in why
    with pytest.raises(ConfigError):
        embedding.choose(EngineConfig(Path(), "m", pooling="rank"), FACTS, 9, encoder=False)
