"""llama-server's own endpoints: shapes and time limits on the stub, truth on pocket."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekit_server.app import Server
from tests.support.gguf_models import write_model
from tests.support.http_server import config_for, running
from tests.support.pocket import SOURCE, convert_pocket
from tests.support.stub_engine import StubEngine

N_CTX = 1024
QWEN = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>",
        "<|file_sep|>"]  # fmt: skip
EXTRA = [{"filename": "shape.py", "text": "def area(r):\n    return r * r\n", "time": [1, 2]}]
VIM = {
    "id_slot": 0,
    "input_prefix": "import math\n\n",
    "input_suffix": "\n\nprint(count)\n",
    "input_extra": EXTRA,
    "prompt": "count",
    "n_predict": 128,
    "stop": [],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.90,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 5000,
    "t_max_predict_ms": 10000,
    "response_fields": [
        "content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms",
        "timings/prompt_per_second", "timings/predicted_n", "timings/predicted_ms",
        "timings/predicted_per_token_ms", "timings/predicted_per_second", "truncated",
        "tokens_cached",
    ],
}  # fmt: skip
WARM_UP = {
    "id_slot": 0, "input_prefix": "", "input_suffix": "", "input_extra": EXTRA, "prompt": "",
    "n_predict": 0, "temperature": 0.0, "samplers": [], "stream": False, "cache_prompt": True,
    "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""],
}  # fmt: skip
VSCODE = {k: v for k, v in VIM.items() if k != "response_fields"} | {"n_cmpl": 3, "top_p": 0.99}


def _post(server: Server, path: str, body: object) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=20)


def _last_generate(stub: StubEngine) -> list[Any]:
    line = [line for line in stub.lines() if line.startswith("generate ")][-1]
    return json.loads(line.removeprefix("generate "))  # type: ignore[no-any-return]


def _stream(server: Server, path: str, body: object) -> list[dict[str, Any]]:
    with httpx.stream("POST", f"{server.url}{path}", json=body, timeout=20) as response:
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: {") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# -- shapes, on the stub ----------------------------------------------------------------------


def test_llama_vim_gets_the_fields_that_it_asks_for(server: Server, shared_stub: Any) -> None:
    answer = _post(server, "/infill", VIM).json()
    assert answer.keys() == set(VIM["response_fields"])  # type: ignore[call-overload]
    assert answer["content"] == "one two three four"
    assert answer["truncated"] is False
    assert answer["timings/predicted_n"] == 18
    assert answer["timings/predicted_ms"] >= 100
    assert all(isinstance(v, int | float) for k, v in answer.items() if k != "content")
    _, limit, prompt = _last_generate(shared_stub)
    assert limit == 128
    assert prompt == [
        ["<s>", True],
        ["\n+++++ shape.py\ndef area(r):\n    return r * r\n", False],
        ["[SUFFIX]", True],
        ["\n\nprint(count)\n", False],
        ["[PREFIX]", True],
        ["import math\n\ncount", False],
    ]


def test_llama_vscode_gets_one_object_per_completion(server: Server) -> None:
    answers = _post(server, "/infill", VSCODE).json()
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    for answer in answers:
        assert answer["content"] == "one two three four"
        assert (answer["stop"], answer["stop_type"], answer["stopping_word"]) == (True, "eos", "")
        assert answer["tokens_predicted"] == answer["timings"]["predicted_n"] == 18
        assert answer["tokens_cached"] == answer["tokens_evaluated"] + 18
        assert answer["timings"]["cache_n"] == 3
        assert answer["timings"]["prompt_n"] == answer["tokens_evaluated"] - 3
        assert answer["generation_settings"]["top_k"] == 40
        assert answer["generation_settings"]["n_ctx"] == 2048
        assert "omitted" not in answer
        assert answer["model"] == "tiny"


def test_a_warm_up_only_computes_the_prompt(server: Server, shared_stub: Any) -> None:
    assert _post(server, "/infill", WARM_UP).json() == {}
    assert _last_generate(shared_stub)[1] == 1  # the engine needs one; nobody sees it
    answer = _post(server, "/infill", {**WARM_UP, "response_fields": None}).json()
    assert (answer["content"], answer["tokens_predicted"], answer["tokens"]) == ("", 0, [])
    assert answer["timings"]["predicted_n"] == 0
    assert answer["stop_type"] == "limit"


def test_a_warm_up_does_not_end_the_answer_beside_it(server: Server) -> None:
    with httpx.stream("POST", f"{server.url}/infill", json={**VIM, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        assert _post(server, "/infill", WARM_UP).status_code == 200
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert rest[-1].get("tokens_predicted", 18) == 18


@pytest.mark.parametrize("path", ["/infill", "/completion"])
def test_stream(server: Server, path: str) -> None:
    body = {"prompt": "count", "stream": True, "timings_per_token": True, "n_probs": 1}
    found = _stream(server, path, body)
    assert "".join(part["content"] for part in found) == "one two three four"
    assert [part["stop"] for part in found] == [False] * (len(found) - 1) + [True]
    assert [t for part in found for t in part["tokens"]] == list(range(18))
    assert found[-1]["timings"]["predicted_n"] == 18
    assert "timings" in found[0]
    assert found[0]["completion_probabilities"][0]["token"] == "o"
    assert "completion_probabilities" not in found[-1]


def test_completion_takes_texts_ids_and_several(server: Server, shared_stub: Any) -> None:
    answer = _post(server, "/completion", {"prompt": "count", "n_probs": 2}).json()
    assert answer["content"] == "one two three four"
    assert answer["prompt"] == "<s>count"
    assert len(answer["completion_probabilities"]) == 18
    assert _last_generate(shared_stub)[2] == [["<s>", True], ["count", True]]
    assert _post(server, "/completion", {"prompt": [5, 6]}).json()["prompt"] == [5, 6]
    answers = _post(server, "/completion", {"prompt": ["count", "hi"], "n": 2}).json()
    assert [a["content"] for a in answers] == ["one two three four"] * 2 + ["hello"] * 2


def test_a_stop_string_is_named(server: Server) -> None:
    answer = _post(server, "/completion", {"prompt": "count", "stop": ["three"]}).json()
    assert (answer["content"], answer["stop_type"]) == ("one two ", "word")
    assert answer["stopping_word"] == "three"
    answer = _post(server, "/completion", {"prompt": "limit"}).json()
    assert (answer["content"], answer["stop_type"]) == ("aaaa", "limit")


# -- time limits, on the stub -----------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_what_there_is_at_the_limit_is_the_answer(
    server: Server, shared_stub: StubEngine, stream: bool
) -> None:
    body = {"prompt": "long", "t_max_predict_ms": 300, "stream": stream}
    began = time.monotonic()
    found = _stream(server, "/infill", body) if stream else [_post(server, "/infill", body).json()]
    assert time.monotonic() - began < 2  # the stub would take 40 s
    content = "".join(part["content"] for part in found)
    assert 3 <= len(content) <= 15
    assert content == "x" * len(content)
    last = found[-1]
    assert (last["stop_type"], last["stopped_by"]) == ("limit", "t_max_predict_ms")
    assert last["truncated"] is False
    assert last["tokens_predicted"] == len(content)
    deadline = time.monotonic() + 5
    while not shared_stub.lines()[-1].startswith("cancel ") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert shared_stub.lines()[-1].startswith("cancel ")


def test_a_prompt_that_takes_too_long(server: Server) -> None:
    answer = _post(server, "/infill", {"prompt": "silent", "t_max_prompt_ms": 100}).json()
    assert (answer["content"], answer["stop_type"]) == ("", "limit")
    assert answer["stopped_by"] == "t_max_prompt_ms"
    assert 100 <= answer["timings"]["prompt_ms"] < 450
    # Not above 0: no limit; and the limit of one phase is none of the other.
    for limits in ({"t_max_prompt_ms": 0}, {"t_max_prompt_ms": 5000, "t_max_predict_ms": 50}):
        answer = _post(server, "/infill", {"prompt": "silent", **limits}).json()
        assert answer["content"] == "late"


def test_errors(server: Server) -> None:
    for body, status, code, param in (
        ({"prompt": "overflow"}, 400, "context_length_exceeded", "prompt"),
        ({"prompt": "crowded"}, 429, "queue_full", None),
        ({"input_extra": [{"filename": "a"}]}, 400, "missing_required_parameter", None),
        ({"t_max_predict_ms": "soon"}, 400, "invalid_value", "t_max_predict_ms"),
        ({"n_cmpl": 17}, 400, "invalid_value", "n_cmpl"),
        ({"model": "else"}, 404, "model_not_found", "model"),
    ):
        response = _post(server, "/infill", body)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code)
        assert param in (None, error["param"])
    assert _post(server, "/completion", {}).json()["error"]["param"] == "prompt"
    for prompt in ([], [9999], [-1], [[], [1]]):
        assert _post(server, "/completion", {"prompt": prompt}).json()["error"]["param"] == "prompt"
    found = _stream(server, "/completion", {"prompt": "fails", "stream": True})
    assert found[-1]["error"]["code"] == "engine_error"


def test_a_model_without_fim_tokens(server: Server) -> None:
    client = server.app.state.router.client
    hello = client.hello
    client.hello = replace(hello, fim={})
    try:
        for path, body in (("/infill", VIM), ("/v1/fim/completions", {"prompt": "a"})):
            response = _post(server, path, body)
            assert response.status_code == 501
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("not_supported_error", "no_fim_tokens")
            assert "the model has no FIM tokens" in error["message"]
            assert "Qwen2.5-Coder" in error["message"]
    finally:
        client.hello = hello


# -- what clients ask before anything else ----------------------------------------------------


@pytest.mark.parametrize("query", ["", "?model=tiny", "?model=alias&autoload=false"])
def test_props(server: Server, query: str) -> None:
    props = httpx.get(f"{server.url}/props{query}").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert props["default_generation_settings"]["params"]["top_k"] == 40
    assert props["total_slots"] == 4
    assert (props["model_alias"], props["model_path"]) == ("tiny", "tiny.gguf")
    assert props["modalities"] == {"vision": False, "audio": False, "video": False}
    assert "[TOOL_CALLS]" in props["chat_template"]
    assert props["chat_template_caps"]["supports_tools"] is True
    assert props["chat_template_caps"]["supports_parallel_tool_calls"] is True
    assert (props["bos_token"], props["eos_token"]) == ("<s>", "</s>")
    assert isinstance(props["build_info"], str)
    assert httpx.get(f"{server.url}/props?model=else").status_code == 404


def test_models_have_meta(server: Server) -> None:
    meta = httpx.get(f"{server.url}/v1/models").json()["data"][0]["meta"]
    assert {"n_ctx": 2048, "n_ctx_train": 8192, "n_params": 1000, "size": 2000}.items() <= (
        meta.items()
    )


def test_apply_template(server: Server) -> None:
    messages = [{"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    answer = _post(server, "/apply-template", {"messages": messages}).json()
    assert answer == {"prompt": "<s>[INST]hi[/INST]"}
    answer = _post(server, "/apply-template", {"messages": messages, "tools": tools}).json()
    assert '[AVAILABLE_TOOLS][{"type": "function"' in answer["prompt"]
    assert _post(server, "/apply-template", {}).json()["error"]["param"] == "messages"


# -- truth, on real engines -------------------------------------------------------------------


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not list(SOURCE.glob("*.safetensors")):
        pytest.skip("pocket's weights are not built yet")
    path = convert_pocket(tmp_path_factory.mktemp("pocket"))
    config = config_for(path)
    engine = replace(config.engine, model_id="pocket", n_ctx=N_CTX, n_seq_max=4, n_ubatch=256)
    with running(replace(config, engine=engine)) as server:
        yield server


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Random weights, Qwen's control tokens, a context of 512."""
    path: Path = tmp_path_factory.mktemp("coder") / "coder.gguf"
    write_model(path, n_ctx_train=512, more_control=QWEN)
    config = config_for(path)
    engine = replace(config.engine, model_id="coder", n_ctx=2048, n_seq_max=4)
    with running(replace(config, engine=engine)) as server:
        yield server


def test_needle_at_the_limit(pocket: Server) -> None:
    """One token is left for the answer at n_ctx - 1; nothing is ever cut."""

    def infill(n: int) -> dict[str, Any]:
        half = (n - frame) // 2
        return {"input_prefix": " a" * half, "input_suffix": " a" * (n - frame - half)}

    body = {"input_prefix": " a", "input_suffix": " a", "n_predict": 0}
    frame = _post(pocket, "/infill", body).json()["tokens_evaluated"] - 2
    for path, prompt in (
        ("/infill", infill),
        ("/completion", lambda n: {"prompt": [300] * n}),
    ):
        for n in (N_CTX - 2, N_CTX - 1):
            for n_predict in (0, 4):
                answer = _post(pocket, path, {**prompt(n), "n_predict": n_predict}).json()
                assert answer["tokens_evaluated"] == n
                assert answer["tokens_predicted"] <= min(n_predict, N_CTX - n)
        # Clients tell by this that the context is what ended it.
        full = _post(pocket, path, {**prompt(N_CTX - 1), "ignore_eos": True}).json()
        assert (full["truncated"], full["stop_type"]) == (True, "limit")
        response = _post(pocket, path, prompt(N_CTX))
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
        assert f"resulted in {N_CTX} tokens" in error["message"]


def test_a_time_limit_frees_the_engine(pocket: Server) -> None:
    body = {"input_prefix": "a", "t_max_predict_ms": 200, "ignore_eos": True, "n_cmpl": 2}
    began = time.monotonic()
    answers = _post(pocket, "/infill", body).json()
    assert time.monotonic() - began < 15
    for answer in answers:
        assert answer["tokens_predicted"] > 0
        assert answer["content"]
        if answer["tokens_predicted"] + answer["tokens_evaluated"] < N_CTX:
            assert answer["stopped_by"] == "t_max_predict_ms"
    metrics = httpx.get(f"{pocket.url}/metrics").text
    assert "edgekit_requests_in_flight 0" in metrics


def test_a_prompt_cut_short_by_its_limit_has_no_figures(pocket: Server) -> None:
    """How much of it was computed is not known; the engine keeps that for the next try."""
    body = {"input_prefix": " a b c" * 300, "t_max_prompt_ms": 0.001, "cache_prompt": False}
    answer = _post(pocket, "/infill", body).json()
    assert (answer["content"], answer["stopped_by"]) == ("", "t_max_prompt_ms")
    assert (answer["timings"]["prompt_n"], answer["tokens_cached"]) == (0, 0)
    assert answer["truncated"] is False


def test_bias_in_pairs_and_the_seed_that_means_none(pocket: Server) -> None:
    body = {"prompt": "def", "n_predict": 1, "temperature": 0, "return_tokens": True}
    best = _post(pocket, "/completion", body).json()["tokens"][0]
    for bias in ([[best, False]], [[best, -100]], {str(best): -100}):
        other = _post(pocket, "/completion", {**body, "logit_bias": bias}).json()
        assert other["tokens"] != [best]
    for wrong in ([["a", 1]], [1], [[1]], [[10**9, 1]]):
        error = _post(pocket, "/completion", {**body, "logit_bias": wrong}).json()["error"]
        assert error["param"] == "logit_bias"
    answer = _post(pocket, "/completion", {**body, "seed": 2**32 - 1, "logit_bias": []}).json()
    assert answer["generation_settings"]["seed"] == -1


def test_a_warm_up_leaves_the_prompt_in_memory(pocket: Server) -> None:
    extra = [{"filename": "a.py", "text": "def add(a, b):\n    return a + b\n" * 20}]
    body = {"input_prefix": "", "input_suffix": "", "input_extra": extra, "temperature": 0}
    cold = _post(pocket, "/infill", {**body, "n_predict": 0, "t_max_prompt_ms": 1}).json()
    assert cold["tokens_predicted"] == 0
    assert cold["timings"]["prompt_n"] > 200
    warm = _post(pocket, "/infill", {**body, "input_prefix": "def add(", "n_predict": 4}).json()
    assert warm["timings"]["cache_n"] > 200
    assert warm["timings"]["prompt_n"] < 20


def test_tokens_and_probabilities_are_those_of_the_text(pocket: Server) -> None:
    body = {"prompt": "def add(a, b):\n", "n_predict": 12, "temperature": 0, "n_probs": 3}
    answer = _post(pocket, "/completion", {**body, "return_tokens": True}).json()
    back = _post(pocket, "/detokenize", {"tokens": answer["tokens"]}).json()["content"]
    assert back == answer["content"]
    best = [entry["top_logprobs"][0]["id"] for entry in answer["completion_probabilities"]]
    assert best == answer["tokens"]
    mixed = _post(pocket, "/completion", {**body, "prompt": ["def add(a, b)", 300]}).json()
    assert mixed["tokens_evaluated"] > 3
    assert mixed["prompt"][-1] == 300


def test_apply_template_and_tokenize_count_what_chat_reads(pocket: Server) -> None:
    """llama.vscode counts tokens this way."""
    messages = [{"role": "user", "content": "Name a colour."}]
    text = _post(pocket, "/apply-template", {"messages": messages}).json()["prompt"]
    tokens = _post(pocket, "/tokenize", {"content": text}).json()["tokens"]
    chat = _post(pocket, "/v1/chat/completions", {"messages": messages, "max_tokens": 1}).json()
    assert len(tokens) == chat["usage"]["prompt_tokens"]
    meta = httpx.get(f"{pocket.url}/v1/models").json()["data"][0]["meta"]
    assert meta["n_embd"] > 0
    assert meta["n_vocab"] > 300


def test_files_of_a_repository_in_qwen_s_layout(coder: Server) -> None:
    files = [{"filename": "a.py", "text": "x = 1\n"}, {"text": "<|fim_pad|>"}]
    body = {"input_prefix": "p", "input_suffix": "s", "input_extra": files, "n_predict": 0}
    answer = _post(coder, "/infill", body).json()
    assert answer["prompt"] == (
        "<s><|repo_name|>project\n<|file_sep|>a.py\nx = 1\n<|file_sep|>tmp\n<|fim_pad|>"
        "<|file_sep|>current\n<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>"
    )
    tokens = _post(coder, "/tokenize", {"content": answer["prompt"]}).json()["tokens"]
    # What a file says is text, so its letters are more tokens than the one that they spell.
    assert answer["tokens_evaluated"] > len(tokens)


@pytest.mark.parametrize("n_predict", [0, 16, None])
def test_the_oldest_files_go_when_the_context_is_full(coder: Server, n_predict: Any) -> None:
    files = [{"filename": f"{i}.py", "text": f"<{i}>" + "ab " * 30} for i in range(20)]
    body = {"input_prefix": "p" * 40, "input_suffix": "s" * 40, "n_predict": n_predict}
    few = _post(coder, "/infill", {**body, "input_extra": files[:1]})
    assert few.json()["truncated"] is (n_predict is None and few.json()["stop_type"] == "limit")
    assert "x-edgekit-omitted" not in few.headers
    response = _post(coder, "/infill", {**body, "input_extra": files})
    answer = response.json()
    n_left = answer["omitted"]["input_extra"]
    assert 0 < n_left < 20
    assert answer["truncated"] is True
    assert response.headers["x-edgekit-omitted"] == answer["omitted"]["reason"]
    assert f"{n_left} of 20 input_extra, the oldest" in answer["omitted"]["reason"]
    shown = [i for i in range(20) if f"<{i}>" in answer["prompt"]]
    assert shown == list(range(n_left, 20))
    assert "p" * 40 in answer["prompt"]
    assert "s" * 40 in answer["prompt"]
    room = 512 - (256 if n_predict is None else max(1, n_predict))
    assert answer["tokens_evaluated"] <= room
    one_more = _post(coder, "/infill", {**body, "n_predict": 0, "input_extra": files[n_left - 1 :]})
    if n_predict == 0:
        assert one_more.json()["omitted"]["input_extra"] == 1
    stream = _stream(coder, "/infill", {**body, "input_extra": files, "stream": True})
    assert stream[-1]["omitted"] == answer["omitted"]
