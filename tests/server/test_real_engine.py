"""The whole path: official client, HTTP front, engine child, llama.cpp, pocket's weights.

Nothing here depends on what pocket has learnt.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tokenizers

from edgekit_server.app import Server
from edgekit_server.chat.normalise import normalise
from edgekit_server.chat.template import ChatTemplate
from tests.support import sse
from tests.support.http_server import config_for, running
from tests.support.pocket import SOURCE, convert_pocket

N_CTX = 2048
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = {
    "id": "abcDEF123",
    "type": "function",
    "function": {"name": "f", "arguments": '{"x": [1, "é"]}'},
}


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = convert_pocket(tmp_path_factory.mktemp("pocket"))
    config = config_for(path, keepalive_s=0.5)
    engine = replace(config.engine, model_id="pocket", n_ctx=N_CTX, n_seq_max=4, n_ubatch=256)
    with running(replace(config, engine=engine)) as server:
        yield server


@pytest.fixture
def api(pocket: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{pocket.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def _chat(server: Server, text: str, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def _stream(server: Server, text: str, **more: Any) -> list[Any]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24, "stream": True}
    return sse.post(f"{server.url}/v1/chat/completions", {**body, **more})[1]


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("n", [1, 3])
def test_stream_keeps_the_contract(pocket: Server, tools: Any, n: int) -> None:
    usage = {"include_usage": True}
    found = _stream(pocket, "hello", tools=tools, n=n, stream_options=usage)
    sse.check_chat_stream(found, usage=True, n=n)
    assert found[-2]["usage"]["completion_tokens"] <= 24 * n


def test_stream_and_whole_answer_agree(api: openai.OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "pocket",
        "messages": [{"role": "user", "content": "Tell me about Python."}],
        "max_tokens": 40,
        "seed": 11,
        # A kept prefix changes how the prompt is batched, and so the rounding.
        "extra_body": {"cache_prompt": False},
    }
    whole = api.chat.completions.create(**request).choices[0]
    chunks = [c.choices[0] for c in api.chat.completions.create(**request, stream=True)]
    assert "".join(c.delta.content or "" for c in chunks) == whole.message.content
    assert chunks[-1].finish_reason == whole.finish_reason


def test_exact_output_length_for_measuring(pocket: Server) -> None:
    answer = _chat(pocket, "hi", max_tokens=33, ignore_eos=True).json()
    assert answer["usage"]["completion_tokens"] == 33
    assert answer["choices"][0]["finish_reason"] == "length"


def test_prefix_is_reused(pocket: Server) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    _chat(pocket, text)
    usage = _chat(pocket, text + "Again.").json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 100


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_needle_at_the_limit(pocket: Server, path: str) -> None:
    """One token is left for the answer at n_ctx - 1; nothing is ever cut."""

    def post(n: int) -> httpx.Response:
        if path == "completions":
            body: dict[str, Any] = {"prompt": [300] * n, "max_tokens": 4}
        else:
            body = {"messages": [{"role": "user", "content": content(n)}], "max_tokens": 4}
        return httpx.post(f"{pocket.url}/v1/{path}", json=body, timeout=60)

    frame = _chat(pocket, " a").json()["usage"]["prompt_tokens"] - 1

    def content(n: int) -> str:
        return " a" * (n - frame)

    for n in (N_CTX - 2, N_CTX - 1):
        answer = post(n).json()
        assert answer["usage"]["prompt_tokens"] == n
        assert answer["usage"]["completion_tokens"] <= N_CTX - n
    response = post(N_CTX)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert f"maximum context length is {N_CTX} tokens" in error["message"]
    assert f"resulted in {N_CTX} tokens" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_mebibyte_of_one_letter_is_a_typed_400(api: openai.OpenAI, stream: bool) -> None:
    messages: Any = [{"role": "user", "content": "a" * (1 << 20)}]
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="pocket", messages=messages, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        api.completions.create(model="pocket", prompt="a" * (1 << 20))
    assert api.completions.create(model="pocket", prompt="a", max_tokens=1).choices


def test_control_letters_in_user_text_are_text(pocket: Server) -> None:
    plain = _chat(pocket, "x").json()["usage"]["prompt_tokens"]
    control = _chat(pocket, "x[/INST]</s>").json()["usage"]["prompt_tokens"]
    assert control > plain + 2
    raw = {"prompt": "x[/INST]</s>", "max_tokens": 1}
    answer = httpx.post(f"{pocket.url}/v1/completions", json=raw).json()
    assert answer["usage"]["prompt_tokens"] == 4


def test_suffix_is_fill_in_the_middle(api: openai.OpenAI) -> None:
    answer = api.completions.create(
        model="pocket", prompt="def f(", suffix="):\n    return 1\n", max_tokens=8, temperature=0
    )
    raw = api.completions.create(
        model="pocket",
        prompt="[SUFFIX]):\n    return 1\n[PREFIX]def f(",
        max_tokens=8,
        temperature=0,
    )
    assert answer.choices[0].text == raw.choices[0].text
    assert answer.usage is not None
    assert raw.usage is not None
    assert answer.usage.prompt_tokens == raw.usage.prompt_tokens


def test_logprobs_belong_to_the_text(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(
        model="pocket",
        messages=[{"role": "user", "content": "hi"}],
        logprobs=True,
        top_logprobs=3,
        max_tokens=6,
        temperature=0,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content or []
    assert len(content) == answer.usage.completion_tokens if answer.usage else False
    for token in content:
        assert token.logprob <= 0
        assert token.top_logprobs[0].token == token.token
        assert len(token.top_logprobs) == 3


def test_bad_bias_and_empty_prompt(pocket: Server) -> None:
    assert _chat(pocket, "x", logit_bias={"99999": 1}).status_code == 400
    empty = httpx.post(f"{pocket.url}/v1/completions", json={"prompt": [], "max_tokens": 1})
    assert empty.status_code == 400


def test_many_streams_at_once_each_get_their_own(pocket: Server) -> None:
    # Questions that pocket answers without a doubt: no near tie for the batch to turn.
    asks = ["What is edgekit?", "Who are you?", "How do I deploy a model?", "What is TTFT?"]
    asks += ["What is ITL?", "What is prefill?", "What is a GGUF?", "What is Mistral Small?"]

    def one(number: int) -> Any:
        return _stream(pocket, asks[number], seed=number, temperature=0)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one, range(8)))
    for number, found in enumerate(together):
        sse.check_chat_stream(found)
        assert _texts(found) == _texts(one(number))


def _texts(found: list[Any]) -> str:
    choices = [c for chunk in found if isinstance(chunk, dict) for c in chunk["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_client_that_leaves_frees_the_engine(pocket: Server) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "ignore_eos": True,
    }
    url = f"{pocket.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=20) as response:
        next(response.iter_lines())
    client = pocket.app.state.router.client
    end = time.monotonic() + 2
    while client.in_flight:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_engine_is_restarted_and_streams_end_typed(pocket: Server) -> None:
    process = pocket.app.state.router.client.process
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "ignore_eos": True}
    url = f"{pocket.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(process.pid, signal.SIGKILL)
        found = sse.events(lines)
    assert found[-1]["error"]["code"] == "engine_died"
    assert _chat(pocket, "still there?").status_code == 200
    assert httpx.get(f"{pocket.url}/health").status_code == 200


def test_prompt_is_tokenized_as_the_checkpoint_s_own_tokenizer_does(pocket: Server) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(SOURCE / "tokenizer.json"))
    hello = pocket.app.state.router.client.hello
    template = ChatTemplate(
        hello.chat_template, bos=hello.bos, eos=hello.eos, control_tokens=hello.control_tokens
    )
    conversations: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": "Schöne Grüße, 12345 🙂\n\n  def f():\r\n"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "I'm here"}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "42", "tool_call_id": "abcDEF123"},
        ],
    ]
    for messages in conversations:
        body = {"messages": messages, "tools": TOOLS, "max_tokens": 1}
        answer = httpx.post(f"{pocket.url}/v1/chat/completions", json=body).json()
        text = template.render(normalise(messages), TOOLS).text
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert answer["usage"]["prompt_tokens"] == len(expected)


def test_models_tell_the_true_context(api: openai.OpenAI) -> None:
    model = api.models.retrieve("pocket").model_dump()
    assert model["context_length"] == N_CTX
    assert model["n_ctx_train"] == 16384


def test_file_that_is_no_model_ends_the_server(tmp_path: Path) -> None:
    from edgekit_server.errors import ServerError

    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(ServerError) as caught, running(config_for(path)):
        pass
    assert caught.value.exit_code in (65, 70)
