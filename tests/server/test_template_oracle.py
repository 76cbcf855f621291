"""Prompts of every family are what transformers' apply_chat_template gives.

The templates in tests/data/templates are our own; each does what its family's does: where tools
go, how calls and results are written, and what it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from edgekit_server.chat.adapt import adapted
from edgekit_server.chat.builtin import source
from edgekit_server.chat.family import load_specs, recognise
from edgekit_server.chat.normalise import Turn, normalise
from edgekit_server.chat.parser import Parser, Text, ToolCall
from edgekit_server.chat.template import ChatTemplate
from tests.server.test_mistral_prompts import CONVERSATIONS, TOOLS, asked, told, user

FOLDER = Path(__file__).parents[1] / "data" / "templates"
TEMPLATES = {path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.jinja")}
TEMPLATES |= {f"mistral-{v}": source(v) for v in ("v7", "v11", "v13")}
ONE, TWO = "abcDEF123", "abcDEF124"
HARD: dict[str, list[dict[str, Any]]] = {
    "developer, arrays, null": [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "system", "content": "c"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        user("again"),
        {"role": "assistant", "content": None},
        {"role": "system", "content": "later"},
        user("end"),
    ],
    "calls with foreign ids and text": [
        user("w?"),
        asked(("call_1", "get_weather", {"city": 'B "x"'}), ("call_2", "clock", {}), content="Ok."),
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "12:00"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "cold"},
        user("and now?"),
        asked(("call_3", "clock", {}), content=" "),
        told("call_3", "13:00", "clock"),
    ],
}  # fmt: skip
ALL = {**CONVERSATIONS, **HARD}


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_family_has_a_template_here() -> None:
    assert {s.family for s in load_specs()} - set(TEMPLATES) == {"plain", "mistral-v3"}


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("conversation", sorted(ALL))
def test_prompts_are_those_of_transformers(
    name: str, conversation: str, tools: list[Any] | None
) -> None:
    spec, _ = recognise(TEMPLATES[name])
    assert spec.family == name
    turns, shown = adapted(normalise(ALL[conversation]), tools, spec)
    context: dict[str, Any] = dict(spec.context)
    template = ChatTemplate(TEMPLATES[name], bos="<s>", eos="</s>", control_tokens=CONTROL)
    ours = template.render(turns, shown, context=context)
    assert ours.text == _theirs(name, turns, shown, **context)
    for thinking in (True, False):
        ours = template.render(turns, shown, enable_thinking=thinking, context=context)
        assert ours.text == _theirs(name, turns, shown, enable_thinking=thinking, **context)


CONTROL = ["<s>", "</s>", "[INST]", "[TOOL_CALLS]", "<|im_start|>", "<|start|>", "<|eot_id|>"]


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")


def _theirs(name: str, turns: list[Turn], tools: list[Any] | None, **context: Any) -> str:
    made = _tokenizer().apply_chat_template(
        turns, tools=tools, chat_template=TEMPLATES[name], tokenize=False,
        add_generation_prompt=True, **context,
    )  # fmt: skip
    return str(made)


def test_what_a_model_wrote_is_what_it_reads_the_next_time(name: str) -> None:
    """Else the next prompt differs from what is resident, and its prefix is computed anew."""
    spec, _ = recognise(TEMPLATES[name])
    template = ChatTemplate(TEMPLATES[name], bos="<s>", eos="</s>", control_tokens=())
    context = dict(spec.context)
    first = normalise([{"role": "system", "content": "s"}, user("w?")])
    calls = ("get_weather", {"city": "Bern é"}), ("clock", {})
    asking = asked(*((f"abcDEF12{at}", *call) for at, call in enumerate(calls)))
    before = template.render(*adapted(first, list(TOOLS), spec), context=context).text
    after = template.render(
        *adapted(normalise([*[dict(t) for t in first], asking]), list(TOOLS), spec), context=context
    ).text
    # DeepSeek's prompt opens a thought, which a turn of the past does not have.
    before = before.removesuffix("<think>\n")
    said = after[len(commonprefix([before, after])) :]  # noqa: RUF071 (letter by letter)
    parser = Parser(spec, offered={"get_weather": None, "clock": None})
    events = parser.feed(_cut(said, spec)) + parser.finish()
    found = [(e.name, json.loads(e.arguments)) for e in events if isinstance(e, ToolCall)]
    expected = calls[:1] if spec.single_calls else calls
    assert found[: len(expected)] == list(expected)
    assert "get_weather" not in "".join(e.text for e in events if isinstance(e, Text))


def _cut(text: str, spec: Any) -> Iterator[tuple[bytes, bool]]:
    """Yield pieces in which the family's markers, and the turn's end, are control tokens."""
    markers = {m for f in spec.forms if not f.guess for m in (*f.open, *f.inner, *f.close)}
    markers -= {"```", ";"}
    markers |= {"</s>", "<|im_end|>", "<|eot_id|>", "<|eom|>", "<end_of_turn>\n"}
    if spec.channels:
        markers |= {*spec.channels.open, *spec.channels.end, spec.channels.message}
    while text:
        found = [(text.find(m), -len(m), m) for m in markers if m in text]
        at, _, marker = min(found, default=(len(text), 0, ""))
        if text[:at]:
            yield text[:at].encode(), False
        if marker:
            yield marker.encode(), True
        text = text[at + len(marker) :]
