from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from edgekit_server.app import Server
from tests.support import sse
from tests.support.stub_engine import StubEngine


def _prompts(stub: StubEngine, count: int = 1) -> list[Any]:
    lines = [line for line in stub.lines() if line.startswith("generate ")][-count:]
    return [json.loads(line.removeprefix("generate "))[2] for line in lines]


def test_text_continues(client: openai.OpenAI, shared_stub: StubEngine) -> None:
    answer = client.completions.create(model="tiny", prompt="def f", max_tokens=9)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello", "stop")
    assert answer.object == "text_completion"
    assert _prompts(shared_stub) == [[["<s>", True], ["def f", True]]]


def test_suffix_is_fill_in_the_middle_in_mistral_s_layout(
    client: openai.OpenAI, shared_stub: StubEngine
) -> None:
    client.completions.create(model="tiny", prompt="a = [PREFIX]", suffix="\nb", max_tokens=9)
    assert _prompts(shared_stub) == [
        [
            ["<s>", True],
            ["[SUFFIX]", True],
            ["\nb", False],
            ["[PREFIX]", True],
            ["a = [PREFIX]", False],
        ]
    ]


def test_fim_text_rendered_by_an_editor_keeps_its_control_tokens(
    client: openai.OpenAI, shared_stub: StubEngine
) -> None:
    client.completions.create(model="tiny", prompt="<s>[SUFFIX]b[PREFIX]a")
    assert _prompts(shared_stub) == [[["<s>[SUFFIX]b[PREFIX]a", True]]]


@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6, 7]]])
def test_token_ids(client: openai.OpenAI, shared_stub: StubEngine, prompt: Any) -> None:
    client.completions.create(model="tiny", prompt=prompt)
    assert _prompts(shared_stub) == [[5, 6, 7]]


def test_several_prompts_times_n(client: openai.OpenAI, shared_stub: StubEngine) -> None:
    answer = client.completions.create(model="tiny", prompt=["count", "hi"], n=2, echo=True)
    assert [c.text for c in answer.choices] == ["countone two three four"] * 2 + ["hihello"] * 2
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("<s>count") + len("<s>hi")


def test_stream(server: Server) -> None:
    body = {"prompt": "hi", "stream": True, "echo": True, "stream_options": {"include_usage": True}}
    _, found = sse.post(f"{server.url}/v1/completions", body)
    assert found[-1] == "[DONE]"
    assert found[-2]["choices"] == []
    assert found[-2]["usage"]["completion_tokens"] == 5
    choices = [chunk["choices"][0] for chunk in found[:-2]]
    assert "".join(choice["text"] for choice in choices) == "hihello"
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert all(chunk["id"].startswith("cmpl-") for chunk in found[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_four_lists(client: openai.OpenAI, stream: bool) -> None:
    made = client.completions.create(
        model="tiny", prompt="hi", logprobs=2, echo=True, stream=stream
    )
    chunks = list(made) if stream else [made]
    found = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    assert [t for f in found for t in f.tokens] == list("hello")
    assert [o for f in found for o in f.text_offset] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 17}, "invalid_value", "prompt"),
        ({"prompt": [4096]}, "bad_token", "prompt"),
        ({"prompt": [-1]}, "bad_token", "prompt"),
        ({"prompt": [1], "suffix": "x"}, "invalid_value", "suffix"),
        ({"prompt": [1], "echo": True}, "unsupported_parameter", "echo"),
        ({"prompt": "a", "best_of": 3}, "unsupported_parameter", "best_of"),
        ({"prompt": {"a": 1}}, "invalid_value", "prompt"),
        ({"prompt": "overflow"}, "context_length_exceeded", "prompt"),
    ],
)
def test_bad_requests(server: Server, fields: dict[str, object], code: str, param: str) -> None:
    response = httpx.post(f"{server.url}/v1/completions", json=fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
