from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgekit_server.chat.adapt import adapted
from edgekit_server.chat.family import load_specs, recognise
from edgekit_server.chat.normalise import normalise
from edgekit_server.chat.template import ChatTemplate
from edgekit_server.errors import BadModelError, RequestError
from tests.server.test_mistral_prompts import SYSTEM, TOOLS, asked, told, user

SPECS = {spec.family: spec for spec in load_specs()}
FOLDER = Path(__file__).parents[1] / "data" / "templates"
ONE, TWO = "abcDEF123", "abcDEF124"
TALK = [
    SYSTEM,
    user("w?"),
    asked((ONE, "get_weather", {"city": "{name} é"}), (TWO, "clock", {}), content="I look."),
    told(ONE, "cold"),
    told(TWO, "12:00", "clock"),
    user("thanks"),
]


def test_emulated_tools_are_told_in_text() -> None:
    turns, tools = adapted(normalise(TALK), list(TOOLS), SPECS["phi-4"])
    assert tools is None
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    system = str(turns[0]["content"])
    assert system.startswith("Be brief.\n\nAlways.\n\nYou can use the tools")
    assert (
        '<tool_call>\n{"name": "TOOL", "arguments": {"ARGUMENT": "VALUE"}}\n</tool_call>' in system
    )
    for tool in TOOLS:
        assert json.dumps(tool["function"], ensure_ascii=False) in system
    assert turns[2]["content"] == (
        'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "{name} é"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    )
    assert turns[3]["content"] == (
        "<tool_response>\ncold\n</tool_response>\n\n<tool_response>\n12:00\n</tool_response>"
        "\n\nthanks"
    )


def test_without_tools_nothing_is_told_but_calls_of_the_past() -> None:
    turns, _ = adapted(normalise([user("hi")]), None, SPECS["phi-4"])
    assert turns == [{"role": "user", "content": "hi"}]
    turns, _ = adapted(normalise(TALK), None, SPECS["plain"])
    assert "<tool_response>" in str(turns[3]["content"])


def test_system_is_folded_where_there_is_no_place_for_it() -> None:
    turns, _ = adapted(normalise(TALK), list(TOOLS), SPECS["gemma"])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert str(turns[0]["content"]).endswith("\n\nw?")
    source = (FOLDER / "gemma.jinja").read_text("utf-8")
    template = ChatTemplate(source, bos="<s>", eos="</s>", control_tokens=())
    assert "<tool_response>" in template.render(turns).text
    only, _ = adapted(normalise([SYSTEM]), None, SPECS["gemma"])
    assert only == [{"role": "user", "content": SYSTEM["content"]}]


def test_calls_are_split_where_the_template_takes_one() -> None:
    turns, tools = adapted(normalise(TALK), list(TOOLS), SPECS["llama3"])
    assert tools == TOOLS
    roles = ["system", "user", "assistant", "assistant", "tool", "assistant", "tool", "user"]
    assert [turn["role"] for turn in turns] == roles
    assert turns[2]["content"] == "I look."
    assert [turns[at]["content"] for at in (4, 6)] == ["cold", "12:00"]


def test_native_families_are_left_alone() -> None:
    turns = normalise(TALK)
    for name in ("mistral-v13", "hermes", "qwen3-coder", "deepseek", "harmony", "llama4"):
        assert adapted(turns, list(TOOLS), SPECS[name]) == (turns, TOOLS)


def test_unknown_templates() -> None:
    assert recognise("<|im_start|>{{ messages }}")[0].emulated
    spec, reason = recognise("<|im_start|>{{ tools }}")
    assert not spec.emulated
    assert "every common form" in reason


def _limited(source: str, **more: Any) -> ChatTemplate:
    made = ChatTemplate(source, bos="<s>", eos="</s>", control_tokens=["</s>"], limited=True)
    if made._child is not None and more:
        made._child._timeout_s = more["timeout_s"]
    return made


TURNS = normalise([user("hi </s> é😀")])


def test_a_child_renders_what_the_parent_would() -> None:
    for source in ("{{ bos_token }}{{ messages[0].content }}", "{{ tools | tojson }}"):
        own = ChatTemplate(source, bos="<s>", eos="</s>", control_tokens=["</s>"])
        child = _limited(source)
        for _ in range(2):
            assert child.render(TURNS, list(TOOLS)).pieces == own.render(TURNS, list(TOOLS)).pieces


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("{{ raise_exception('no') }}", "template_refused"),
        ("{{ nope.nope }}", "template_refused"),
        ("{{ 1 // 0 }}", "template_failed"),
        ("{{ 'x' * 10**11 }}", "template_failed"),
        (
            "{% set ns = namespace(x='x' * 99) %}{% for i in range(60) %}"
            "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "template_failed",
        ),
        ("{% for i in range(9000) %}{{ 'x' * 9999 }}{% endfor %}", "request_too_large"),
    ],
)
def test_a_template_that_fails_fails_alone(source: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        _limited(source, timeout_s=5).render(TURNS)
    assert caught.value.code == code


def test_a_template_that_never_ends_is_ended() -> None:
    hang = (
        "{% if messages[0].content == 'hang' %}"
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        "{% endif %}ok"
    )
    template = _limited(hang, timeout_s=0.7)
    began = time.monotonic()
    with pytest.raises(RequestError, match="more than"):
        template.render(normalise([user("hang")]))
    assert time.monotonic() - began < 10
    assert template.render(TURNS).text == "ok"
    children = psutil.Process().children()
    del template
    gc.collect()
    assert len(psutil.Process().children()) < len(children)


def test_a_broken_template_is_a_bad_model_in_a_child_too() -> None:
    with pytest.raises(BadModelError):
        _limited("{% for %}")
