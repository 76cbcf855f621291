"""Each family's calls as grammars: what they let through is what the parser reads as calls."""

from __future__ import annotations

import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit_server.api.constraints import after_reasoning
from edgekit_server.api.schema import ChatRequest
from edgekit_server.api.tools import grammar_with, offered
from edgekit_server.chat.family import PLAIN, Spec, load_specs
from edgekit_server.chat.parser import Parser, Text, ToolCall
from edgekit_server.chat.template import Rendered
from edgekit_server.engine.constrain import Grammars, Matcher
from edgekit_server.engine.vocabulary import Vocabulary
from edgekit_server.engine.wire import Grammar
from edgekit_server.errors import RequestError

SPECS = {spec.family: spec for spec in load_specs()}
EOS = "<eos>"
MARKERS = [
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>",
    "<think>", "</think>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>",
    "<|call|>", "<|constrain|>", "<|python_tag|>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>",
    "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
]  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "clock"}},
]
FIRST, SECOND = ("weather", '{"city": "Bern", "days": 2}'), ("clock", "{}")
REAL = [*SPECS]
LETTERS = [name for name, spec in SPECS.items() if spec.text_markers]


class Model:
    """A vocabulary of single bytes, with markers as control tokens or without."""

    def __init__(self, controls: list[str]) -> None:
        pieces = [bytes([byte]) for byte in range(256)]
        texts = [EOS, *controls]
        self.control_ids = {text: 256 + at for at, text in enumerate(texts)}
        self.hello: Any = SimpleNamespace(
            control_ids=self.control_ids, eos=EOS, chat_template="<think>"
        )
        vocabulary = Vocabulary(
            pieces=[*pieces, *(text.encode() for text in texts)],
            controls=frozenset(self.control_ids.values()),
            ends=frozenset([256]),
            suppressed=(),
            bos=None,
            eos=EOS,
            fim={},
            longest_piece=32,
            exact_bytes=True,
        )
        self.grammars = Grammars(vocabulary, lambda text: list(text.encode()))
        self.split = re.compile("(" + "|".join(map(re.escape, texts)) + ")")

    def pieces(self, text: str) -> list[tuple[bytes, bool]]:
        return [
            (part.encode(), part in self.control_ids) for part in self.split.split(text) if part
        ]

    def takes(self, grammar: Grammar, text: str) -> bool:
        """Whether a text is a whole answer under a grammar."""
        matcher: Matcher = self.grammars.compile(grammar)
        for data, real in self.pieces(text):
            for token in [self.control_ids[data.decode()]] if real else list(data):
                if not matcher.allows(token):
                    return False
                matcher.accept(token)
        return matcher.accepting


@cache
def model(*, real: bool) -> Model:
    return Model(MARKERS if real else [])


def written(spec: Spec, *calls: tuple[str, str]) -> str:
    """Return calls as a family's models write them."""
    form = spec.forms[0]
    before, between, after = form.many
    texts = []
    for name, arguments in calls:
        text = form.written.replace("{name}", name).replace("{quoted}", f'"{name}"')
        text = text.replace("{id}", "abcDEF123").replace("{maybe_id}", ', "id": "abcDEF123"')
        texts.append(text.replace("{json}", arguments))
    return before + between.join(texts) + after


def grammar_for(spec: Spec, on: Model, **more: Any) -> Grammar | None:
    body = ChatRequest.model_validate({"messages": [], "tools": TOOLS, **more})
    return grammar_with(None, body, offered(body), spec, on.hello)


def read(spec: Spec, on: Model, text: str) -> tuple[str, list[tuple[str, str]]]:
    parser = Parser(spec, offered={"weather": SCHEMA, "clock": None})
    events = parser.feed(on.pieces(text)) + parser.finish()
    said = "".join(e.text for e in events if isinstance(e, Text))
    return said, [(e.name, e.arguments) for e in events if isinstance(e, ToolCall)]


CASES = [(name, True) for name in REAL] + [(name, False) for name in LETTERS]


@pytest.mark.parametrize(("name", "real"), CASES)
def test_demanded_calls_are_what_the_parser_reads(name: str, real: bool) -> None:
    spec, on = SPECS[name], model(real=real)
    grammar = grammar_for(spec, on, tool_choice="required")
    assert grammar is not None
    assert not grammar.lenient
    one, two = written(spec, FIRST), written(spec, FIRST, SECOND)
    assert on.takes(grammar, one)
    assert read(spec, on, one) == ("", [FIRST])
    if spec.channels is None:
        assert on.takes(grammar, two)
        assert read(spec, on, two) == ("", [FIRST, SECOND])
    for wrong in ("Hello", f"x{one}", one.replace("weather", "rm"), one.replace('"city"', '"c"')):
        assert not on.takes(grammar, wrong)
    single = grammar_for(spec, on, tool_choice="required", parallel_tool_calls=False)
    assert single is not None
    assert on.takes(single, one)
    assert not on.takes(single, two)
    named = grammar_for(spec, on, tool_choice={"type": "function", "function": {"name": "clock"}})
    assert named is not None
    assert on.takes(named, written(spec, SECOND))
    assert not on.takes(named, one)


@pytest.mark.parametrize(("name", "real"), CASES)
def test_text_is_free_until_something_opens_a_call(name: str, real: bool) -> None:
    spec, on = SPECS[name], model(real=real)
    grammar = grammar_for(spec, on)
    if spec.forms[0].guess or spec.channels is not None:
        assert grammar is None
        return
    assert grammar is not None
    assert grammar.lenient
    one, two = written(spec, FIRST), written(spec, FIRST, SECOND)
    for text in ("", "Hello.\n```json\n{}\n```", f"Let me see. {one}", two, f"é {one}\n"):
        assert on.takes(grammar, text), text
    assert read(spec, on, f"Let me see. {two}")[1] == [FIRST, SECOND]
    for wrong in (one.replace("weather", "rm"), one.replace("Bern", 'B"'), one[: len(one) // 2]):
        assert not on.takes(grammar, f"Well: {wrong}")


def test_an_answer_in_a_schema_or_calls() -> None:
    spec, on = SPECS["hermes"], model(real=False)
    body = ChatRequest.model_validate({"messages": [], "tools": TOOLS})
    answer = Grammar("json_schema", '{"type": "integer"}', "response_format")
    grammar = grammar_with(answer, body, offered(body), spec, on.hello)
    assert grammar is not None
    assert on.takes(grammar, "12")
    assert on.takes(grammar, written(spec, FIRST))
    assert not on.takes(grammar, "twelve")


@pytest.mark.parametrize("real", [True, False])
def test_harmony_may_think_before_a_demanded_call(real: bool) -> None:
    spec, on = SPECS["harmony"], model(real=real)
    grammar = grammar_for(spec, on, tool_choice="required")
    assert grammar is not None
    thought = "<|channel|>analysis<|message|>Hm {x}.\n<|end|><|start|>assistant"
    assert on.takes(grammar, thought + written(spec, FIRST))


@pytest.mark.parametrize("real", [True, False])
def test_harmony_puts_a_constrained_answer_in_its_final_message(real: bool) -> None:
    spec, on = SPECS["harmony"], model(real=real)
    plain = Grammar("json_schema", '{"type": "integer"}', "response_format")
    grammar = after_reasoning(plain, spec, Rendered([], 0), on.hello, thinking=None)
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    for lead in ("", thought):
        text = f"{lead}<|channel|>final<|message|>12"
        assert on.takes(grammar, text)
        assert read(spec, on, text) == ("12", [])
    assert not on.takes(grammar, "12")


@pytest.mark.parametrize("prompt", ["x<think>\n", "x"])
def test_reasoning_in_letters_goes_before_what_is_constrained(prompt: str) -> None:
    spec, on = SPECS["deepseek"], model(real=False)
    rendered = Rendered([(prompt, True)], len(prompt))
    plain = Grammar("json_schema", '{"type": "integer"}', "response_format")
    grammar = after_reasoning(plain, spec, rendered, on.hello, thinking=None)
    begun = prompt.endswith("\n")
    assert on.takes(grammar, f"{'' if begun else '<think>'}Hm.\nSo </think>\n\n12")
    assert on.takes(grammar, "12") is not begun
    assert not on.takes(grammar, f"{'' if begun else '<think>'}Hm.</think>x")
    off = after_reasoning(plain, spec, Rendered([("x", True)], 1), on.hello, thinking=False)
    assert off == plain


def test_a_model_without_the_tokens_or_the_forms_cannot_be_made_to() -> None:
    on = model(real=False)
    for spec in (PLAIN, SPECS["mistral-v13"]):
        assert grammar_for(spec, on) is None
        with pytest.raises(RequestError) as caught:
            grammar_for(spec, on, tool_choice="required")
        assert caught.value.param == "tool_choice"
