"""Fill in the middle in every dialect that has it, as real editors ask for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gguf
import httpx
import pytest

from edgekit_server.app import Server
from tests.support import sse
from tests.support.gguf_models import byte_alphabet, write_model
from tests.support.http_server import config_for, running
from tests.support.pocket import SOURCE, convert_pocket
from tests.support.stub_engine import StubEngine

PREFIX = "def add(a, b):\n    return "
SUFFIX = "\n\n\ndef sub(a, b):\n    return a - b\n"
ZED_STOPS = [
    "<|endoftext|>", "<|file_sep|>", "<|fim_pad|>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<PRE>", "<SUF>", "<MID>",
    "[PREFIX]", "[SUFFIX]",
]  # fmt: skip
CONTINUE_STOPS = ["/src/", "#- coding: utf-8", "```", "\n\n\n", "[PREFIX]", "[SUFFIX]", "</s>",
                  "\nfunction", "\nclass", "\nimport", "\r\n\r\n", "\n+++++ "]  # fmt: skip


def _post(server: Server, path: str, body: object) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=20)


def _last_prompt(stub: StubEngine) -> Any:
    line = [line for line in stub.lines() if line.startswith("generate ")][-1]
    return json.loads(line.removeprefix("generate "))[2]


def test_answer_in_the_chat_shape(server: Server, shared_stub: StubEngine) -> None:
    body = {"model": "tiny", "prompt": "count", "suffix": "S", "min_tokens": 1, "random_seed": 3}
    answer = _post(server, "/v1/fim/completions", body).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two three four", "tool_calls": None},
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["completion_tokens"] == 18
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    expected = [["<s>", True], ["[SUFFIX]", True], ["S", False], ["[PREFIX]", True]]
    assert _last_prompt(shared_stub) == [*expected, ["count", False]]
    _post(server, "/fim/completions", {"prompt": "[SUFFIX]hi"})
    expected = [["<s>", True], ["[SUFFIX]", True], ["[PREFIX]", True], ["[SUFFIX]hi", False]]
    assert _last_prompt(shared_stub) == expected


def test_stream_in_the_chat_shape(server: Server) -> None:
    body = {"prompt": "count", "suffix": "S", "stream": True, "max_tokens": 64}
    _, found = sse.post(f"{server.url}/v1/fim/completions", body)
    assert found[-1] == "[DONE]"
    chunks = found[:-1]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == "one two three four"
    finish = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert finish == [None] * (len(chunks) - 1) + ["stop"]
    assert ["usage" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["usage"]["total_tokens"] > 18


def test_several_choices_and_stop(server: Server) -> None:
    body = {"prompt": "count", "suffix": "S", "n": 2, "stop": "three"}
    choices = _post(server, "/v1/fim/completions", body).json()["choices"]
    assert [c["message"]["content"] for c in choices] == ["one two "] * 2
    _, found = sse.post(f"{server.url}/v1/fim/completions", {**body, "stream": True})
    finish = [c["choices"][0]["finish_reason"] for c in found[:-1]]
    assert finish.count("stop") == 2
    assert sum("usage" in chunk for chunk in found[:-1]) == 1


@pytest.mark.parametrize("path", ["/v1/fim/completions", "/infill", "/v1/completions"])
def test_a_control_token_ends_the_middle(server: Server, path: str) -> None:
    """The stub thinks aloud, between control tokens: that is no middle."""
    body = {"prompt": "think", "suffix": "S", "input_suffix": "S"}
    answer = _post(server, path, body).json()
    if path == "/infill":
        assert (answer["content"], answer["stop_type"]) == ("", "eos")
    else:
        choice = answer["choices"][0]
        assert choice.get("text", choice.get("message", {}).get("content")) == ""
        assert choice["finish_reason"] == "stop"


def test_errors(server: Server) -> None:
    for body, status, code in (
        ({}, 400, "missing_required_parameter"),
        ({"prompt": "a", "max_tokens": 0}, 400, "invalid_value"),
        ({"prompt": ["a"]}, 400, "invalid_value"),
        ({"prompt": "overflow"}, 400, "context_length_exceeded"),
        ({"prompt": "a", "model": "else"}, 404, "model_not_found"),
    ):
        response = _post(server, "/v1/fim/completions", body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    _, found = sse.post(f"{server.url}/v1/fim/completions", {"prompt": "fails", "stream": True})
    assert found[-1]["error"]["code"] == "engine_error"


# -- as editors ask, recorded shapes rewritten -------------------------------------------------


def test_zed_edit_prediction(server: Server, shared_stub: StubEngine) -> None:
    """Its prompt is laid out by itself, and its reader needs an `id`."""
    body = {"model": "tiny", "prompt": "[SUFFIX]S[PREFIX]count", "max_tokens": 64,
            "temperature": 0.2, "stop": ZED_STOPS}  # fmt: skip
    answer = _post(server, "/v1/completions", body).json()
    assert answer["id"]
    assert answer["choices"][0]["text"] == "one two three four"
    assert _last_prompt(shared_stub) == [["<s>", True], ["[SUFFIX]S[PREFIX]count", True]]


def test_continue_autocomplete(server: Server) -> None:
    body = {"model": "tiny", "prompt": "<s>[SUFFIX]S[PREFIX]count", "max_tokens": 256,
            "temperature": 0.01, "stream": True, "stop": CONTINUE_STOPS, "raw": True}  # fmt: skip
    _, found = sse.post(f"{server.url}/v1/completions", body)
    texts = [chunk["choices"][0]["text"] for chunk in found[:-1] if chunk["choices"]]
    assert "".join(texts) == "one two three four"
    body = {"model": "tiny", "prompt": "count", "suffix": "S", "max_tokens": 256, "stream": True,
            "temperature": 0.01, "stop": CONTINUE_STOPS, "top_p": None}  # fmt: skip
    _, found = sse.post(f"{server.url}/v1/fim/completions", body)
    texts = [chunk["choices"][0]["delta"]["content"] for chunk in found[:-1]]
    assert "".join(texts) == "one two three four"
    body = {"prompt": "count", "stream": True, "n_predict": 256, "top_p": 0.9, "top_k": 20,
            "stop": CONTINUE_STOPS, "cache_prompt": True}  # fmt: skip
    _, found = sse.post(f"{server.url}/completion", body)
    assert "".join(part["content"] for part in found) == "one two three four"


def test_tabby(server: Server) -> None:
    """Its readers fail on a chunk without `choices[].text`, or on a part without `content`."""
    body = {"model": "tiny", "prompt": "count", "suffix": "S", "max_tokens": 64,
            "temperature": 0.1, "stream": True, "presence_penalty": 0.0}  # fmt: skip
    _, found = sse.post(f"{server.url}/v1/completions", body)
    assert all(isinstance(chunk["choices"][0]["text"], str) for chunk in found[:-1])
    _, found = sse.post(f"{server.url}/v1/fim/completions", body)
    assert all(isinstance(c["choices"][0]["delta"]["content"], str) for c in found[:-1])
    native = {"seed": 7, "prompt": "count", "n_predict": 64, "penalty": 0.0, "stop": ["\n\n"],
              "temperature": 0.1, "stream": True}  # fmt: skip
    _, found = sse.post(f"{server.url}/completion", native)
    assert all(isinstance(part["content"], str) for part in found)
    assert [part["stop"] for part in found[-2:]] == [False, True]


# -- truth, on pocket --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not list(SOURCE.glob("*.safetensors")):
        pytest.skip("pocket's weights are not built yet")
    path = convert_pocket(tmp_path_factory.mktemp("pocket"))
    config = config_for(path)
    engine = replace(config.engine, model_id="pocket", n_ctx=1024, n_ubatch=256)
    with running(replace(config, engine=engine)) as server:
        yield server


@pytest.mark.parametrize("suffix", [SUFFIX, "\n", "[PREFIX] é🙂</s>\n"])
def test_every_dialect_fills_in_the_same(pocket: Server, suffix: str) -> None:
    drawing = {"temperature": 0, "cache_prompt": False, "stop": ["\n\n"]}
    mistral = {"prompt": PREFIX, "suffix": suffix, "max_tokens": 24, **drawing}
    native = {"input_prefix": PREFIX[:-7], "prompt": PREFIX[-7:], "input_suffix": suffix,
              "n_predict": 24, **drawing}  # fmt: skip
    infill = _post(pocket, "/infill", native).json()
    fim = _post(pocket, "/v1/fim/completions", mistral).json()
    legacy = _post(pocket, "/v1/completions", mistral).json()
    assert infill["content"] == fim["choices"][0]["message"]["content"]
    assert infill["content"] == legacy["choices"][0]["text"]
    assert infill["content"]
    n_prompt = infill["tokens_evaluated"]
    assert n_prompt == fim["usage"]["prompt_tokens"] == legacy["usage"]["prompt_tokens"]
    chunks = sse.post(f"{pocket.url}/v1/fim/completions", {**mistral, "stream": True})[1]
    streamed = "".join(c["choices"][0]["delta"]["content"] for c in chunks[:-1])
    assert streamed == infill["content"]
    parts = sse.post(f"{pocket.url}/infill", {**native, "stream": True})[1]
    assert "".join(part["content"] for part in parts) == infill["content"]
    if "[PREFIX]" not in suffix:  # text that an editor lays out itself may name the tokens
        raw = {"prompt": f"[SUFFIX]{suffix}[PREFIX]{PREFIX}", "max_tokens": 24, **drawing}
        answer = _post(pocket, "/v1/completions", raw).json()
        assert answer["choices"][0]["text"] == infill["content"]


def test_needle_at_the_limit(pocket: Server) -> None:
    body: dict[str, Any] = {"prompt": " a", "suffix": " a", "max_tokens": 1}
    usage = _post(pocket, "/v1/fim/completions", body).json()["usage"]
    frame = usage["prompt_tokens"] - 1
    for n in (1022, 1023, 1024):
        body = {"prompt": " a" * (n - frame), "suffix": " a", "max_tokens": 4}
        response = _post(pocket, "/v1/fim/completions", body)
        if n < 1024:
            assert response.json()["usage"]["prompt_tokens"] == n
        else:
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Random weights behind a vocabulary of SentencePiece's kind, with Mistral's FIM tokens."""
    path = tmp_path_factory.mktemp("spm") / "spm.gguf"
    byte_of = {char: f"<0x{byte:02X}>" for byte, char in enumerate(byte_alphabet())}
    space = {"filler0": "\u2581", "filler1": "\u2581a", "filler2": "b", "filler3": "a"}
    with pytest.MonkeyPatch.context() as patch:
        writer = gguf.GGUFWriter
        kind, tokens, types = writer.add_tokenizer_model, writer.add_token_list, gguf.TokenType

        def add_tokens(self: Any, texts: list[str]) -> None:
            self.texts = [byte_of.get(text, space.get(text, text)) for text in texts]
            tokens(self, self.texts)
            self.add_token_scores([0.0] * len(texts))

        def add_types(self: Any, given: list[Any]) -> None:
            byte = [text.startswith("<0x") for text in self.texts]
            kinds = [types.BYTE if b else t for b, t in zip(byte, given, strict=True)]
            self.add_array("tokenizer.ggml.token_type", kinds)

        patch.setattr(writer, "add_tokenizer_model", lambda self, _: kind(self, "llama"))
        patch.setattr(writer, "add_tokenizer_pre", lambda self, _: None)
        patch.setattr(writer, "add_token_merges", lambda self, _: None)
        patch.setattr(writer, "add_token_list", add_tokens)
        patch.setattr(writer, "add_token_types", add_types)
        write_model(path, n_filler=4)
    config = config_for(path)
    with running(config) as server:
        yield server


@pytest.mark.parametrize(("suffix", "n_suffix"), [("b", 1), ("bb", 2), ("\nb", 2), (" b", 2)])
def test_a_suffix_gets_no_space_of_its_own(
    sentencepiece: Server, suffix: str, n_suffix: int
) -> None:
    """Elsewhere such a vocabulary puts one in front of a text: the prefix is `_a`."""
    assert sentencepiece.app.state.router.client.hello.pads_text
    asked = {"content": "[SUFFIX]b"}
    assert len(_post(sentencepiece, "/tokenize", asked).json()["tokens"]) == 3
    n_prompt = 1 + 1 + n_suffix + 1 + 1
    drawing = {"temperature": 0, "cache_prompt": False}
    body = {"prompt": "a", "suffix": suffix, "max_tokens": 4, **drawing}
    native = {"input_prefix": "a", "input_suffix": suffix, "n_predict": 4, **drawing}
    infill = _post(sentencepiece, "/infill", native).json()
    assert infill["tokens_evaluated"] == n_prompt
    assert infill["prompt"] == f"<s>[SUFFIX]{suffix}[PREFIX]a"
    for path in ("/v1/completions", "/v1/fim/completions"):
        assert _post(sentencepiece, path, body).json()["usage"]["prompt_tokens"] == n_prompt
