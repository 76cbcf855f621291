"""Ollama's dialect without a server: translation, facts, and the contract's own checks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.api.ollama_facts import Facts, capabilities, human, model_info, template
from edgekit_server.api.ollama_lines import Answer, Clock, line
from edgekit_server.api.ollama_schema import (
    ChatBody,
    GenerateBody,
    Message,
    listed_name,
    request_of,
    spellings,
    turns,
)
from edgekit_server.chat.parser import ToolCall
from edgekit_server.engine.wire import Hello, Vectors
from edgekit_server.errors import RequestError
from tests.support.ollama_contract import check
from tests.support.stub_engine import CONTROL, TEMPLATE

HELLO = Hello(
    model_id="m",
    architecture="qwen2",
    description="qwen2 7B Q4_K - Medium",
    n_params=7_615_616_512,
    size_bytes=4_683_073_248,
    n_vocab=100,
    n_ctx_train=32768,
    n_ctx=8192,
    n_ctx_seq=4096,
    n_seq_max=2,
    chat_template=TEMPLATE,
    bos="<s>",
    eos="</s>",
    add_bos=True,
    fim={},
    control_tokens=CONTROL,
    reasons={},
)
QWEN_FIM = {"prefix": "<|fim_prefix|>", "suffix": "<|fim_suffix|>", "middle": "<|fim_middle|>"}
VECTORS = Vectors("mean", 32, 64, None, None, None, None)


def _call(name: str, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {"x": 1}}, **more}


def _results(*messages: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return (call id, name) of each result, with a user turn before everything."""
    made = turns([Message.model_validate(m) for m in ({"role": "user", "content": "q"}, *messages)])
    return [(m.get("tool_call_id"), m.get("name")) for m in made if m["role"] == "tool"]


@pytest.mark.parametrize(
    ("calls", "results", "expected"),
    [
        ([_call("a")], [{"tool_name": "a"}], [("call.1.0", "a")]),
        ([_call("a")], [{"name": "a"}], [("call.1.0", "a")]),
        ([_call("a")], [{}], [("call.1.0", None)]),
        ([_call("a", id="given")], [{"tool_name": "a"}], [("given", "a")]),
        ([_call("a", id="given")], [{"tool_call_id": "given"}], [("given", None)]),
        (
            [_call("a"), _call("b"), _call("a")],
            [{"tool_name": "b"}, {"tool_name": "a"}, {"tool_name": "a"}],
            [("call.1.1", "b"), ("call.1.0", "a"), ("call.1.2", "a")],
        ),
        ([_call("a")], [{"tool_name": "other"}], [(None, "other")]),
        ([], [{"tool_name": "a"}], [(None, "a")]),
    ],
)
def test_results_are_paired_with_calls(
    calls: list[Any], results: list[Any], expected: list[Any]
) -> None:
    found = _results(
        {"role": "assistant", "tool_calls": calls},
        *({"role": "tool", "content": "r", **result} for result in results),
    )
    assert found == expected


def test_arguments_stay_objects_and_images_are_refused() -> None:
    message = {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [_call("a")]}
    (turn,) = turns([Message.model_validate(message)])
    assert turn["tool_calls"] == [{"id": "call.0.0", "type": "function", **_call("a")}]
    assert turn["reasoning_content"] == "hm"
    with pytest.raises(RequestError, match=r"messages\[0\]\.images"):
        turns([Message(role="user", images=["aGk="])])
    assert turns([Message(role="user", content="x", images=[])])


def test_options_become_our_fields() -> None:
    options: dict[str, Any] = {
        "temperature": 0.5, "top_k": 7, "top_p": 0.5, "min_p": 0.1, "seed": 3, "stop": ["x"],
        "repeat_penalty": 1.2, "repeat_last_n": 32, "presence_penalty": 0.5, "mirostat": 1,
        "frequency_penalty": 0.25, "typical_p": 0.9, "mirostat_tau": 4, "mirostat_eta": 0.2,
        "num_predict": 9.0, "num_ctx": 131072, "n": 5, "grammar": "x", "top_n_sigma": None,
    }  # fmt: skip
    body = ChatBody(model="m", options=options, think="low", format={"type": "object"})
    asked = request_of(body, "other", [{"role": "user", "content": "q"}])
    shared = options.keys() - {"num_predict", "num_ctx", "n", "grammar", "top_n_sigma"}
    assert {key: getattr(asked, key) for key in shared} == {key: options[key] for key in shared}
    assert (asked.model, asked.max_tokens, asked.n, asked.grammar) == ("other", 9, None, None)
    assert asked.chat_template_kwargs is not None
    assert asked.chat_template_kwargs.enable_thinking is True
    assert asked.reasoning_effort == "low"
    assert asked.response_format is not None
    assert asked.response_format.json_schema == {"schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("text", "limit"),
    [("-1", None), ("-2", None), ("0", None), ("5", 5), ("1e999", 2**31 - 1), ("null", None)],
)
def test_limits(text: str, limit: int | None) -> None:
    body = ChatBody.model_validate_json(f'{{"model": "m", "options": {{"num_predict": {text}}}}}')
    assert request_of(body, "m", []).max_tokens == limit


@pytest.mark.parametrize("value", ["5", True, 2.5, [5], float("nan")])
def test_limits_that_are_none(value: Any) -> None:
    body = ChatBody.model_construct(model="m", options={"num_predict": value})
    with pytest.raises(RequestError, match="num_predict"):
        request_of(body, "m", [])


@pytest.mark.parametrize(
    ("keep_alive", "lets_go"),
    [(0, True), ("0", True), ("0s", True), (0.0, True), (-1, False), ("5m", False), (None, False)],
)
def test_keep_alive(keep_alive: Any, lets_go: bool) -> None:
    assert GenerateBody(model="m", keep_alive=keep_alive).lets_go is lets_go


@given(st.text("ab:/.-", min_size=1).filter(lambda name: not name.endswith(":")))
def test_a_listed_name_is_found(name: str) -> None:
    assert name in spellings(listed_name(name))
    assert listed_name(name) in spellings(name) or ":" in name


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (24_000_000_000, "24B"), (7_615_616_512, "7.6B"), (494_032_768, "494.03M"),
        (22_000_000, "22M"), (1_234, "1K"), (512, "512"),
    ],
)  # fmt: skip
def test_counts_for_people(n: int, text: str) -> None:
    assert human(n) == text


@pytest.mark.parametrize(
    ("hello", "expected"),
    [
        (HELLO, ["completion", "tools"]),
        (replace(HELLO, fim=QWEN_FIM), ["completion", "tools", "insert"]),
        (replace(HELLO, chat_template=TEMPLATE + "[THINK]"), ["completion", "tools", "thinking"]),
        (replace(HELLO, chat_template=None), ["completion", "tools"]),  # Mistral's vocabulary
        (replace(HELLO, chat_template=None, control_tokens=[]), ["completion"]),
        (replace(HELLO, vectors=VECTORS), ["completion", "tools"]),
        (replace(HELLO, generates=False, vectors=VECTORS, fim=QWEN_FIM), ["embedding"]),
        (replace(HELLO, generates=False, vectors=replace(VECTORS, pooling="rank")), []),
    ],
)
def test_capabilities(hello: Hello, expected: list[str]) -> None:
    assert capabilities(hello) == expected
    assert (".Suffix" in template(hello)) == ("insert" in expected)


def test_facts_are_what_readers_demand(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x" * 10)
    known, unknown = Facts("m", path, HELLO), Facts("m", path, None, ("completion",))
    tag = known.tag()
    assert tag["size"] == 10
    assert tag["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "qwen2",
        "families": ["qwen2"],
        "parameter_size": "7.6B",
        "quantization_level": "Q4_K_M",
    }
    for facts in (known, unknown):
        strings = [facts.tag()[key] for key in ("name", "model", "digest", "modified_at")]
        details = {k: v for k, v in facts.details.items() if k != "families"}
        shown = [facts.show()[key] for key in ("parameters", "template", "modelfile")]
        assert all(isinstance(text, str) for text in (*strings, *details.values(), *shown))
    assert unknown.show()["capabilities"] == ["completion"]
    assert unknown.tag()["digest"] == tag["digest"]
    path.write_bytes(b"x" * 11)
    assert known.tag()["digest"] != tag["digest"]
    path.unlink()
    assert known.tag()["size"] == HELLO.size_bytes
    assert model_info(HELLO, "m")["qwen2.context_length"] == 4096
    assert model_info(HELLO, "m")["general.basename"] == "m"
    assert model_info(replace(HELLO, basename="Qwen2.5"), "m")["general.basename"] == "Qwen2.5"


@pytest.mark.parametrize(
    ("reason", "vram"),
    [
        ("offloaded 29/29 layers to GPU", HELLO.size_bytes),
        ("offloaded 0/29 layers to GPU", 0),
        ("offloaded 7/29 layers to GPU", None),
        (None, 0),
    ],
)
def test_video_memory_is_said_where_it_is_known(reason: str | None, vram: int | None) -> None:
    hello = replace(HELLO, reasons={"n_gpu_layers": reason} if reason else {})
    assert Facts("m", Path("none"), hello).running(hello).get("size_vram") == vram


def test_arguments_that_json_cannot_say() -> None:
    """1e999 is JSON, and the float of it is not; a lone surrogate has no UTF-8."""
    call = ToolCall(0, "abcDEF123", "f", '{"x": [1e999, -1e999, 0.1, 12345678901234567890]}')
    part = json.loads(line(Answer("m", True, Clock()).part([call])))
    (found,) = part["message"]["tool_calls"]
    assert found["function"]["arguments"]["x"][2:] == [0.1, 12345678901234567890]
    assert abs(found["function"]["arguments"]["x"][0]) < float("inf")
    odd = ToolCall(0, "abcDEF123", "f", '{"x": "\\ud800"}')
    json.loads(line(Answer("m", True, Clock()).part([odd])))


PART: dict[str, Any] = {
    "model": "m", "created_at": "2026-01-01T00:00:00.000001Z",
    "message": {"role": "assistant", "content": "a"}, "done": False,
}  # fmt: skip
LAST: dict[str, Any] = {
    **PART, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop",
    "total_duration": 10, "load_duration": 1, "prompt_eval_duration": 4, "eval_duration": 5,
    "prompt_eval_count": 3, "eval_count": 2,
}  # fmt: skip
CALL: dict[str, Any] = {
    "id": "abcDEF123", "function": {"index": 0, "name": "f", "arguments": {}},
}  # fmt: skip


def _says(**message: Any) -> dict[str, Any]:
    return {**PART, "message": {"role": "assistant", "content": "", **message}}


def _bytes(*items: Any) -> bytes:
    return b"".join(i if isinstance(i, bytes) else json.dumps(i).encode() + b"\n" for i in items)


def test_the_contract_takes_what_is_right() -> None:
    found = check(_bytes(PART, _says(thinking="t"), _says(tool_calls=[CALL]), LAST), model="m")
    assert (found.content, found.thinking, found.calls) == ("a", "t", [("f", {})])
    assert check(_bytes(PART, {"error": "x"}), model="m").error == "x"
    assert check(_bytes(PART, b'{"mod'), model="m", cut=True).last is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (_bytes(), "no line"),
        (_bytes(PART), "no line says done"),
        (_bytes(PART, b"\n", LAST), "is empty"),
        (_bytes(PART, LAST)[:-1], "no line break"),
        (_bytes(LAST, PART), "comes after done"),
        (_bytes({"error": "x"}, LAST), "comes after an error"),
        (_bytes({"error": "", "code": 1}), "an error with"),
        (_bytes({"error": ""}), "error is empty"),
        (b"data: {}\n", "not JSON"),
        (b"[]\n", "no object"),
        (b'{"done": NaN}\n', "NaN"),
        (b'{"done": true, "done": true}\n', "twice"),
        (_bytes({**LAST, "model": "n"}), "model is"),
        (_bytes({**LAST, "created_at": "today"}), "RFC 3339"),
        (_bytes({**PART, "created_at": "2027-01-01T00:00:00Z"}, LAST), "goes back"),
        (_bytes({**LAST, "done": 1}), "done is"),
        (_bytes({**LAST, "response": ""}), "response in a chat"),
        (_bytes({**LAST, "message": None}), "message is"),
        (_bytes(_says(role="user"), LAST), "role is"),
        (_bytes(_says(content=None), LAST), "content is"),
        (_bytes(_says(thinking=""), LAST), "thinking is empty"),
        (_bytes(_says(name="x"), LAST), "message has"),
        (_bytes(_says(tool_calls=[]), LAST), "tool_calls is empty"),
        (_bytes(_says(tool_calls=[CALL, CALL]), LAST), "comes twice"),
        (_bytes(_says(tool_calls=[{**CALL, "id": "call_1"}]), LAST), "call id"),
        (_bytes(_says(tool_calls=[{**CALL, "type": "function"}]), LAST), "a call has"),
        (
            _bytes(_says(tool_calls=[{**CALL, "function": {**CALL["function"], "index": 1}}])),
            "call index",
        ),
        (
            _bytes(_says(tool_calls=[{**CALL, "function": {**CALL["function"], "arguments": ""}}])),
            "arguments are str",
        ),
        (_bytes({**PART, "eval_count": 1}, LAST), "before the end"),
        (_bytes(PART, {**LAST, "message": {"role": "assistant", "content": "b"}}), "text on the"),
        (_bytes({**LAST, "done_reason": "tool_calls"}), "done_reason"),
        (_bytes({**LAST, "eval_count": None}), "eval_count is"),
        (_bytes({**LAST, "eval_count": -1}), "eval_count is"),
        (_bytes({k: v for k, v in LAST.items() if k != "eval_duration"}), "no ['eval_duration']"),
        (_bytes({**LAST, "total_duration": 9}), "longer than all"),
        (_bytes(PART, {**LAST, "eval_count": 0}), "of no token"),
        (_bytes({**LAST, "done_reason": "load"}), "load with"),
    ],
)
def test_the_contract_names_what_is_wrong(body: bytes, words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check(body, model="m")
    assert words in str(caught.value)
