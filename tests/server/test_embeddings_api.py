"""Embeddings, reranking, tokens and adapters over HTTP, on real tiny models."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import openai
import pytest

from edgekit_server.app import Server
from edgekit_server.config import Adapter
from tests.support.gguf_models import write_model
from tests.support.http_server import config_for, running
from tests.support.vector_models import write_bert, write_lora, write_reranker


def started(path: Path, **engine: Any) -> Any:
    config = config_for(path)
    return running(replace(config, engine=replace(config.engine, n_gpu_layers=0, **engine)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def real(folder: Path) -> Iterator[Server]:
    model = write_model(folder / "tiny.gguf")
    adapter = Adapter("one", write_lora(folder / "one.gguf", 11), 0.0)
    with started(model, adapters=(adapter,), embed_ctx=100) as server:
        yield server


@pytest.fixture(scope="module")
def ranker(folder: Path) -> Iterator[Server]:
    path = write_bert(folder / "ranker.gguf", pooling=gguf.PoolingType.RANK, head=True)
    with started(path) as server:
        yield server


@pytest.fixture
def http(real: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=real.url, timeout=30) as client:
        yield client


@pytest.fixture
def sdk(real: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def test_the_official_client(sdk: openai.OpenAI) -> None:
    """It asks for base64 and decodes it by itself."""
    answer = sdk.embeddings.create(model="tiny", input=["the cat", "a dog", "the cat"])
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert len(answer.data[0].embedding) == 64
    np.testing.assert_allclose(answer.data[0].embedding, answer.data[2].embedding, atol=1e-4)
    assert not np.allclose(answer.data[0].embedding, answer.data[1].embedding)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3
    plain = sdk.embeddings.create(model="tiny", input="the cat", encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, answer.data[0].embedding, atol=1e-4)
    short = sdk.embeddings.create(model="tiny", input="the cat", dimensions=8)
    assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1.0, abs=1e-5)
    assert len(short.data[0].embedding) == 8


def test_token_ids_are_the_text(http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"content": "the cat", "add_special": True}).json()["tokens"]
    assert ids[0] == 1
    bodies: list[Any] = ["the cat", ids, [ids], ["the cat"]]
    found = [http.post("/embeddings", json={"input": body}).json() for body in bodies]
    for answer in found:
        np.testing.assert_allclose(
            answer["data"][0]["embedding"], found[0]["data"][0]["embedding"], atol=1e-4
        )
        assert answer["usage"]["prompt_tokens"] == len(ids)


def test_base64_is_little_endian_float32(http: httpx.Client) -> None:
    body = {"input": "x", "encoding_format": "base64"}
    text = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    found = np.frombuffer(base64.b64decode(text), "<f4")
    plain = http.post("/v1/embeddings", json={"input": "x"}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": []}, "invalid_value", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input"),
        ({}, "missing_required_parameter", "input"),
        ({"input": [99999]}, "bad_token", "input"),
        ({"input": "a", "dimensions": 65}, "invalid_value", "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "invalid_value", "encoding_format"),
        ({"input": "a " * 500}, "context_length_exceeded", "input"),
        ({"input": ["a"] * 2049}, "invalid_value", "input"),
    ],
)
def test_what_is_refused(http: httpx.Client, body: Any, code: str, param: str) -> None:
    reply = http.post("/v1/embeddings", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param)
    if code == "context_length_exceeded":
        assert "100 tokens" in error["message"]
    if code == "bad_token":
        assert "check_embedding_ctx_length=False" in error["message"]


def test_many_at_once_and_a_stream_beside_them(sdk: openai.OpenAI, http: httpx.Client) -> None:
    stream = sdk.completions.create(model="tiny", prompt="a", max_tokens=200, stream=True)
    answer = sdk.embeddings.create(model="tiny", input=["the cat"] * 300)
    assert len(answer.data) == 300
    assert list(stream)[-1].choices[0].finish_reason in ("length", "stop")
    assert "edgekit_requests_total" in http.get("/metrics").text


def test_tokens_there_and_back(http: httpx.Client) -> None:
    body = {"content": "the é[INST]", "with_pieces": True}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    pieces = [item["piece"] for item in tokens]
    assert pieces == ["the", " ", [0xC3], [0xA9], "[INST]"]
    ids = [item["id"] for item in tokens]
    assert http.post("/tokenize", json={"content": body["content"]}).json() == {"tokens": ids}
    mixed = http.post("/tokenize", json={"content": [1, 2, "the", 3]}).json()["tokens"]
    assert mixed == [1, 2, ids[0], 3]
    plain = http.post("/tokenize", json={"content": "[INST]", "parse_special": False}).json()
    assert len(plain["tokens"]) == 6
    back = http.post("/v1/detokenize", json={"tokens": ids})
    assert back.json() == {"content": "the é[INST]"}
    wrong = http.post("/detokenize", json={"tokens": [1, -1]})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "bad_token")
    assert http.post("/tokenize", json={"content": ""}).json() == {"tokens": []}


def test_adapters_are_listed_and_asked_for(http: httpx.Client, folder: Path) -> None:
    assert http.get("/lora-adapters").json() == [
        {"id": 0, "name": "one", "path": str(folder / "one.gguf"), "scale": 0.0}
    ]

    def said(lora: Any) -> str:
        body = {"prompt": "the cat", "max_tokens": 12, "temperature": 0, "lora": lora}
        reply = http.post("/v1/completions", json={**body, "ignore_eos": True})
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["text"])

    assert said(None) == said([]) == said([{"id": 0, "scale": 0.0}])
    assert said([{"id": 0, "scale": 0.5}]) == said([{"name": "one", "scale": 0.5}]) != said(None)
    for lora in ([{"id": 1}], [{"name": "two"}], [{}], [{"id": 0}, {"name": "one"}]):
        reply = http.post("/v1/completions", json={"prompt": "a", "lora": lora})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "lora")


def test_a_model_without_a_head_cannot_rerank(http: httpx.Client) -> None:
    reply = http.post("/v1/rerank", json={"query": "a", "documents": ["b"]})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "not_supported"
    assert "cannot rerank" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/reranking"])
def test_documents_come_back_best_first(ranker: Server, path: str) -> None:
    documents = ["the dog", {"text": "the cat"}, "abc", "the the the"]
    body = {"query": "the cat", "documents": documents, "return_documents": True}
    with httpx.Client(base_url=ranker.url, timeout=30) as client:
        whole = client.post(path, json=body).json()
        first = client.post(path, json={**body, "top_n": 1, "return_documents": False}).json()
        one = client.post(path, json={"query": "the cat", "documents": ["abc"]}).json()
        ids = client.post("/tokenize", json={"content": "a", "add_special": True}).json()
        refused = client.post("/v1/embeddings", json={"input": "a"})
        chat = client.post("/v1/completions", json={"prompt": "the cat"})
    scores = [item["relevance_score"] for item in whole["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    assert sorted(item["index"] for item in whole["results"]) == [0, 1, 2, 3]
    texts = {item["index"]: item["document"]["text"] for item in whole["results"]}
    assert texts == {0: "the dog", 1: "the cat", 2: "abc", 3: "the the the"}
    assert first["results"] == [
        {"index": whole["results"][0]["index"], "relevance_score": scores[0]}
    ]
    of_abc = next(item for item in whole["results"] if item["index"] == 2)
    assert one["results"][0]["relevance_score"] == pytest.approx(
        of_abc["relevance_score"], abs=2e-3
    )
    assert whole["usage"]["total_tokens"] > 12
    assert (ids["tokens"][0], ids["tokens"][-1]) == (2, 3)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_pooling")
    assert (chat.status_code, chat.json()["error"]["code"]) == (400, "no_generation")


def test_a_decoder_ranks_by_its_own_template(folder: Path) -> None:
    path = write_reranker(folder / "qwen.gguf")
    with started(path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        body = {"query": "the cat", "documents": ["a[/INST]", "b"]}
        answer = client.post("/v1/rerank", json=body).json()
        long = client.post("/v1/rerank", json={"query": "a", "documents": ["ab " * 3000]})
    assert all(0 < item["relevance_score"] < 1 for item in answer["results"])
    assert long.json()["error"]["code"] == "context_length_exceeded"
