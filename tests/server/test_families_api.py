"""Families over real HTTP and a real engine with random weights: prompts, grammars, calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.test_constraints_api import (
    NAMED,
    PARAMETERS,
    TOOLS,
    _answer,
    _check_calls,
)
from tests.support.gguf_models import write_model
from tests.support.http_server import config_for, running

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
BARS = [
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>", "<｜User｜>", "<｜Assistant｜>",
]  # fmt: skip
HARMONY = [
    "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>",
]  # fmt: skip
CASES = [
    ("hermes", ["<tool_call>", "</tool_call>"]), ("llama3", ["<|python_tag|>", "<|eot_id|>"]),
    ("gemma", ["<start_of_turn>"]), ("deepseek-v3.1", BARS), ("harmony", HARMONY),
]  # fmt: skip
HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{at}",
                "type": "function",
                "function": {"name": "get_time", "arguments": "{}"},
            }
            for at in (1, 2)
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "13:00"}]},
    {"role": "user", "content": "And now?"},
]


@pytest.mark.parametrize(("name", "controls"), CASES)
def test_every_family_calls_when_it_must(name: str, controls: list[str], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    template = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    write_model(path, more_control=controls, template=template, n_ctx_train=8192)
    config = config_for(path)
    config = replace(config, engine=replace(config.engine, n_seq_max=1, n_ctx=8192))
    off = {"chat_template_kwargs": {"enable_thinking": False}}  # A random model thinks for ever.
    with running(config) as server:
        choice = _answer(
            server, messages=HISTORY, tools=TOOLS, tool_choice="required", seed=1,
            parallel_tool_calls=False, **off,
        )  # fmt: skip
        _check_calls(choice, set(PARAMETERS))
        named = _answer(server, messages=HISTORY, tools=TOOLS, tool_choice=NAMED, seed=2, **off)
        assert len(_check_calls(named, {"get_weather"})) == 1
        free = _answer(server, messages=HISTORY, tools=TOOLS, max_tokens=20, seed=3)
        assert free["finish_reason"] in ("stop", "length", "tool_calls")
        prompt = httpx.post(
            f"{server.url}/apply-template", json={"messages": HISTORY, "tools": TOOLS}, timeout=30
        ).json()["prompt"]
        assert "get_weather" in prompt
        assert "13:00" in prompt
