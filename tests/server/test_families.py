"""How each family's answers are read, and that chunks never matter."""

# ruff: noqa: E501 (a table, one case a line)
from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_server.chat import family
from edgekit_server.chat.bodies import MAX_HEAD
from edgekit_server.chat.parser import Event, Parser, ReasoningText, Text, ToolCall, merge

Piece = tuple[bytes, bool]
SPECS = {spec.family: spec for spec in family.load_specs()}
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "share": {"type": "number"},
        "now": {"type": "boolean"},
        "tags": {"type": "array"},
        "more": {"type": "object"},
        "maybe": {"type": ["string", "null"]},
        "unit": {"enum": ["c", "f"]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
}
OFFERED = {"weather": SCHEMA, "clock": None}


def _ids() -> Callable[[], str]:
    count = itertools.count()
    return lambda: f"call{next(count):05d}"


def read(
    name: str, pieces: Sequence[Piece], *, at_once: bool = True, **options: object
) -> list[Event]:
    options = {"offered": OFFERED, **options}
    parser = Parser(SPECS[name], call_id=_ids(), **options)  # type: ignore[arg-type]
    if at_once:
        events = parser.feed(pieces)
    else:
        events = [e for piece in pieces for e in parser.feed([piece])]
    return merge(events + parser.finish())


def split(text: str, controls: Sequence[str] = ()) -> list[Piece]:
    """Return a text as pieces in which some markers are control tokens."""
    pieces: list[Piece] = [(text.encode(), False)]
    for control in controls:
        cut: list[Piece] = []
        for data, real in pieces:
            parts = [data] if real else data.split(control.encode())
            for at, part in enumerate(parts):
                cut += [(control.encode(), True)] if at else []
                cut += [(part, real)] if part else []
        pieces = cut
    return pieces


def call(name: str, arguments: object, index: int = 0) -> ToolCall:
    return ToolCall(index, f"call{index:05d}", name, json.dumps(arguments, ensure_ascii=False))


BERN = call("weather", {"city": "Bern"})
CLOCK = call("clock", {}, 1)
HERMES_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
BARE = '{"name": "weather", "arguments": {"city": "Bern"}}'
R1_CALL = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    '{"city": "Bern"}\n```<｜tool▁call▁end｜>'
)
R1_CLOCK = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```<｜tool▁call▁end｜>"
BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
V31_CALL = '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Bern"}<｜tool▁call▁end｜>'
XML_CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n</function>\n"
    "</tool_call>"
)
TAGS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
BARS = [BEGIN, END, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"]
HARMONY = [
    "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>",
    "<|constrain|>",
]  # fmt: skip
PYTHON = ["<|python_tag|>", "<|python_start|>", "<|python_end|>", "<|eom_id|>", "<|eom|>"]
MISTRAL = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"]
CONTROLS: dict[str, list[str]] = {
    "mistral-v3": MISTRAL, "mistral-v7": MISTRAL, "mistral-v11": MISTRAL, "mistral-v13": MISTRAL,
    "llama3": PYTHON, "llama4": PYTHON, "harmony": HARMONY,
}  # fmt: skip

Case = tuple[str, str, str, list[Event]]
CASES: list[Case] = [
    ("mistral-v3", "a list", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bern"}}]', [BERN]),
    ("mistral-v7", "text, then a list", 'ok [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bern"}}, {"name": "clock", "arguments": {}}]', [Text("ok "), BERN, CLOCK]),
    ("mistral-v11", "two", '[TOOL_CALLS]weather[CALL_ID]1[ARGS]{"city": "Bern"}[TOOL_CALLS]clock[CALL_ID]2[ARGS]{}', [BERN, CLOCK]),
    ("mistral-v13", "after thought", '[THINK]hm[/THINK][TOOL_CALLS]weather[ARGS]{"city": "Bern"}', [ReasoningText("hm"), BERN]),
    # Llama
    ("llama3", "bare", '{"name": "weather", "parameters": {"city": "Bern"}}', [BERN]),
    ("llama3", "two", '{"name": "weather", "parameters": {"city": "Bern"}}; {"name": "clock", "parameters": {}}', [BERN, CLOCK]),
    ("llama3", "tag", '<|python_tag|>{"name": "weather", "parameters": {"city": "Bern"}}<|eom_id|>', [BERN]),
    ("llama3", "tag and code", "<|python_tag|>print(1)", [Text("<|python_tag|>print(1)")]),
    ("llama3", "a tool that was not offered", '{"name": "rm", "parameters": {}}', [Text('{"name": "rm", "parameters": {}}')]),
    ("llama3", "other JSON", '{"a": [1, {"name": 2}]}', [Text('{"a": [1, {"name": 2}]}')]),
    ("llama3", "code", "{ return 1; }\nif (x) {\n  y;\n}", [Text("{ return 1; }\nif (x) {\n  y;\n}")]),
    ("llama3", "letters of a control token", '<|python_tag|', [Text("<|python_tag|")]),
    ("llama4", "bare list", '[weather(city="Bern"), clock()]', [BERN, CLOCK]),
    ("llama4", "with markers", '<|python_start|>[weather(city="Bern")]<|python_end|>', [BERN]),
    ("llama4", "JSON", '{"name": "weather", "parameters": {"city": "Bern"}}', [BERN]),
    ("llama4", "values", "[weather(city='a]\\'(\"', days=-3, share=1.5, now=true, tags=[1, None], more={'a': (1, 2)})]", [call("weather", {"city": "a]'(\"", "days": -3, "share": 1.5, "now": True, "tags": [1, None], "more": {"a": [1, 2]}})]),
    ("llama4", "a list that is none", "[1, 2, 3] and [weather](http://x)", [Text("[1, 2, 3] and [weather](http://x)")]),
    ("llama4", "no literal", '[weather(city=open("x"))]', [Text('[weather(city=open("x"))]')]),
    ("llama4", "positional", '[weather("Bern")]', [Text('[weather("Bern")]')]),
    ("llama4", "not offered", "[rm(a=1)]", [Text("[rm(a=1)]")]),
    ("llama4", "torn", '[weather(city="Be', [Text('[weather(city="Be')]),
    ("llama4", "JSON with markers", '<|python_start|>{"name": "weather", "parameters": {"city": "Bern"}}; {"name": "clock", "parameters": {}}<|python_end|>', [BERN, CLOCK]),
    # Qwen2.5, Hermes
    ("hermes", "tags", HERMES_CALL, [BERN]),
    ("hermes", "text and two", f"Look.\n{HERMES_CALL}\n<tool_call>\n{{\"name\": \"clock\", \"arguments\": {{}}}}\n</tool_call>", [Text("Look."), BERN, CLOCK]),
    ("hermes", "text after it", f"{HERMES_CALL}\nDone.", [BERN, Text("Done.")]),
    ("hermes", "no end tag", HERMES_CALL.removesuffix("</tool_call>"), [BERN]),
    ("hermes", "thought", f"<think>\nhm\n</think>\n\n{HERMES_CALL}", [ReasoningText("hm"), BERN]),
    ("hermes", "a call inside thought", f"<think>hm {HERMES_CALL}</think>so", [ReasoningText("hm "), BERN, Text("so")]),
    ("hermes", "talk of a call inside thought", "<think>a <tool_call> goes { here</think>x", [ReasoningText("a <tool_call> goes { here"), Text("x")]),
    ("hermes", "fenced", f"Sure:\n```json\n{BARE}\n```\n", [Text("Sure:"), BERN]),
    ("hermes", "fenced without a word", f"```\n{BARE}\n```", [BERN]),
    ("hermes", "bare", BARE, [BERN]),
    ("hermes", "bare after a line", f"I will look.\n{BARE}", [Text("I will look."), BERN]),
    ("hermes", "tools tag", f"<tools>\n{BARE}\n</tools>", [BERN]),
    ("hermes", "parameters", BARE.replace("arguments", "parameters"), [BERN]),
    ("hermes", "OpenAI's nesting", '{"type": "function", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Bern\\"}"}}', [BERN]),
    ("hermes", "fenced, not offered", '```json\n{"name": "rm", "arguments": {}}\n```\nend\n', [Text('```json\n{"name": "rm", "arguments": {}}\n```\nend\n')]),
    ("hermes", "bare, no arguments", '{"name": "weather"}', [Text('{"name": "weather"}')]),
    ("hermes", "fenced config", '```json\n{\n  "name": "pkg",\n  "version": 1\n}\n```', [Text('```json\n{\n  "name": "pkg",\n  "version": 1\n}\n```')]),
    ("hermes", "fenced code", "```python\nx = {}\n```", [Text("```python\nx = {}\n```")]),
    ("hermes", "inside a line it is text", f"Use {BARE} here", [Text(f"Use {BARE} here")]),
    ("hermes", "marker in a value", '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call> <tool_call>"}}</tool_call>', [call("weather", {"city": "</tool_call> <tool_call>"})]),
    ("hermes", "broken JSON", '<tool_call>\n{"name": weather}\n</tool_call>\nx', [Text('<tool_call>\n{"name": weather}\n</tool_call>\nx')]),
    ("hermes", "torn", '<tool_call>\n{"name": "wea', [Text('<tool_call>\n{"name": "wea')]),
    ("hermes", "half a marker", "a <tool_", [Text("a <tool_")]),
    ("hermes", "marker, then a call", f"<tool_call> is how. {HERMES_CALL}", [Text("<tool_call> is how. "), BERN]),
    ("hermes", "half a surrogate", '<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}', [ToolCall(0, "call00000", "weather", '{"city": "\\ud800"}')]),
    ("hermes", "think later is text", "The tag <think> is</think> one.", [Text("The tag <think> is</think> one.")]),
    ("hermes", "unfinished thought", "<think>\nhm\n\n", [ReasoningText("hm\n\n")]),
    ("hermes", "blank lines stay in text", "a\n\n\nb\n\n", [Text("a\n\n\nb\n\n")]),
    # Qwen3-Coder
    ("qwen3-coder", "tags", XML_CALL, [BERN]),
    ("qwen3-coder", "no outer tag", XML_CALL.removeprefix("<tool_call>\n"), [BERN]),
    ("qwen3-coder", "text and two", f"Look.\n{XML_CALL}\n<tool_call>\n<function=clock>\n</function>\n</tool_call>", [Text("Look."), BERN, CLOCK]),
    ("qwen3-coder", "JSON in the tag", HERMES_CALL, [BERN]),
    ("qwen3-coder", "types", "<tool_call><function=weather><parameter=city>12</parameter><parameter=days>3</parameter><parameter=share>2</parameter><parameter=now>True</parameter><parameter=tags>[1]</parameter><parameter=more>{\"a\": null}</parameter><parameter=maybe>null</parameter><parameter=unit>c</parameter><parameter=either>7</parameter><parameter=new>x</parameter></function></tool_call>", [call("weather", {"city": "12", "days": 3, "share": 2, "now": True, "tags": [1], "more": {"a": None}, "maybe": None, "unit": "c", "either": 7, "new": "x"})]),
    ("qwen3-coder", "values that fit no type", "<function=weather>\n<parameter=days>many</parameter>\n<parameter=now>1</parameter></function>", [call("weather", {"days": "many", "now": "1"})]),
    ("qwen3-coder", "lines in a value", "<function=weather>\n<parameter=city>\n\n a <b>\n</function>\n\n</parameter>\n</function>", [call("weather", {"city": "\n a <b>\n</function>\n"})]),
    ("qwen3-coder", "torn", "<tool_call>\n<function=weather>\n<parameter=city>\nBer", [Text("<tool_call>\n<function=weather>\n<parameter=city>\nBer")]),
    ("qwen3-coder", "prose", "<tool_call>\n<func> is", [Text("<tool_call>\n<func> is")]),
    # DeepSeek
    ("deepseek", "R1", f"{BEGIN}{R1_CALL}\n{R1_CLOCK}{END}", [BERN, CLOCK]),
    ("deepseek", "R1 without a fence", f'{BEGIN}<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n{{"city": "Bern"}}<｜tool▁call▁end｜>{END}', [BERN]),
    ("deepseek", "V3.1", f"ok{BEGIN}{V31_CALL}{END}", [Text("ok"), BERN]),
    ("deepseek", "no wrapper", R1_CALL, [BERN]),
    ("deepseek", "thought", f"<think>\nhm\n</think>\n\nyes\n\n{BEGIN}{R1_CALL}{END}", [ReasoningText("hm"), Text("yes"), BERN]),
    ("deepseek", "torn", f"{BEGIN}{R1_CALL[:-30]}", [Text(f"{BEGIN}{R1_CALL[:-30]}")]),
    ("deepseek", "no call", f"{BEGIN} none {{}}", [Text(f"{BEGIN} none {{}}")]),
    ("deepseek-v3.1", "three", f"{BEGIN}{V31_CALL}<｜tool▁call▁begin｜>clock<｜tool▁sep｜>{{}}<｜tool▁call▁end｜>{END}", [BERN, CLOCK]),
    ("deepseek-v3.1", "R1's", f"{BEGIN}{R1_CALL}{END}", [BERN]),
    # Emulated
    ("gemma", "as asked", HERMES_CALL, [BERN]),
    ("gemma", "its own fence", '```tool_code\n[weather(city="Bern")]\n```', [BERN]),
    ("gemma", "fenced JSON", f"```json\n{BARE}\n```", [BERN]),
    ("phi-4", "as asked", f"Let me see.\n{HERMES_CALL}", [Text("Let me see."), BERN]),
    ("phi-4", "a list is text", "[1, 2]", [Text("[1, 2]")]),
    ("plain", "as asked", HERMES_CALL, [BERN]),
    # gpt-oss
    ("harmony", "final", "<|channel|>final<|message|>hi<|return|>", [Text("hi")]),
    ("harmony", "thought, preamble, call", '<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Bern"}<|call|>', [ReasoningText("hm"), Text("I look."), BERN]),
    ("harmony", "recipient first", '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Bern"}<|call|>', [BERN]),
    ("harmony", "the prompt's header goes on", ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Bern"}<|call|>', [BERN]),
    ("harmony", "two", 'to=functions.weather<|channel|>commentary<|message|>{"city": "Bern"}<|call|><|start|>assistant to=functions.clock<|channel|>commentary<|message|>{}<|call|>', [BERN, CLOCK]),
    ("harmony", "text about it", " to be", [Text(" to be")]),
    ("harmony", "call in analysis", '<|channel|>analysis to=functions.weather<|message|>{"city": "Bern"}<|call|>', [BERN]),
    ("harmony", "torn", '<|channel|>commentary to=functions.weather<|message|>{"ci', [Text('<|channel|>commentary to=functions.weather<|message|>{"ci')]),
    ("harmony", "no header", '{"a": 1}', [Text('{"a": 1}')]),
    ("harmony", "header only", "<|channel|>final", [Text("<|channel|>final")]),
    ("harmony", "another recipient", "<|channel|>commentary to=python<|message|>x<|call|>", [Text("<|channel|>commentary to=python<|message|>x")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "events"),
    [(c[0], *c[2:]) for c in CASES],
    ids=[f"{c[0]}: {c[1]}" for c in CASES],
)
def test_events(name: str, text: str, events: list[Event]) -> None:
    controls = CONTROLS.get(name, [])
    assert read(name, split(text, controls)) == events
    one_by_one = not controls or name == "harmony"
    letters = [(char.encode(), False) for char in text] if one_by_one else split(text, controls)
    assert read(name, letters, at_once=False) == events


@pytest.mark.parametrize(
    ("name", "text", "events"),
    [(c[0], *c[2:]) for c in CASES if SPECS[c[0]].text_markers and "\n<func" not in c[2]],
)
def test_markers_may_be_control_tokens_too(name: str, text: str, events: list[Event]) -> None:
    if name == "harmony":
        assert read(name, split(text)) == events  # As llama.cpp has them.
        return
    if "<think> is" in text or '"</tool_call> <' in text:
        return  # A control token is never part of a text.
    controls = BARS if name.startswith("deepseek") else TAGS
    found = read(name, split(text, [*controls, "<think>", "</think>"]))
    calls = [e for e in events if isinstance(e, ToolCall)]
    assert [e for e in found if isinstance(e, ToolCall)] == calls
    if calls:
        assert found == events


def test_prompts_that_open_reasoning() -> None:
    for name in ("hermes", "deepseek", "qwen3-coder"):
        events = read(name, split("hm\n</think>\n\nyes"), in_reasoning=True)
        assert events == [ReasoningText("hm"), Text("yes")]
        swallowed = read(
            name, split("I call.\n" + XML_CALL + R1_CALL + HERMES_CALL), in_reasoning=True
        )
        assert any(isinstance(e, ToolCall) for e in swallowed)


def test_without_offered_tools_ordinary_text_is_no_call() -> None:
    assert read("hermes", split(BARE), offered=None) == [Text(BARE)]
    assert read("hermes", split(HERMES_CALL), offered=None) == [BERN]
    assert read("hermes", split(HERMES_CALL), tools=False) == [Text(HERMES_CALL)]
    assert read("llama4", split('[weather(city="Bern")]'), tools=False) == [
        Text('[weather(city="Bern")]')
    ]


def test_text_that_may_be_a_call_is_not_held_for_long() -> None:
    parser = Parser(SPECS["hermes"], offered=OFFERED)  # type: ignore[arg-type]
    assert parser.feed(split('{"answer"')) == []
    assert merge(parser.feed(split(': "long'))) == [Text('{"answer": "long')]
    parser = Parser(SPECS["llama4"], offered=OFFERED)  # type: ignore[arg-type]
    assert merge(parser.feed(split("[one, two]"))) == [Text("[one, two]")]
    assert merge(parser.feed(split(" " * 5 + "x" * MAX_HEAD)))


def test_stop_strings_and_the_call_limit() -> None:
    events = read("hermes", split(f"a\n\nb {HERMES_CALL}"), stop=["\n\n"])
    assert events == [Text("a")]
    assert read("hermes", split(f"x{HERMES_CALL} STOP y"), stop=["STOP"]) == [Text("x"), BERN]
    twice = HERMES_CALL * 2
    assert read("hermes", split(twice), max_calls=1) == [BERN]
    fenced = "x\n```\ny"
    assert read("hermes", split(fenced), stop=["\n```"]) == [Text("x")]


def test_a_bomb_is_text() -> None:
    for bomb in ('<tool_call>{"a":' + "[" * 10_000, "[weather(a=" + "(" * 10_000):
        assert read("hermes", split(bomb)) == [Text(bomb)]
        assert read("llama4", split(bomb)) == [Text(bomb)]


fragments = st.sampled_from(
    [
        *TAGS, *BARS, *HARMONY, *PYTHON, *MISTRAL, HERMES_CALL, XML_CALL, R1_CALL, V31_CALL, BARE,
        "```json\n", "```", "```tool_code\n", "<tools>", "</tools>", "<function=", "<parameter=",
        "</parameter>", "</function>", ">", "weather", "clock", '[weather(city="x")]', "[clock(",
        '{"name": "', '", "arguments": ', "{", "}", "[", "]", "(", ")", '"', "\\", ":", ";", "\n",
        "\n\n", " ", "é", "😀", "END", "to=functions.weather", "analysis", "final", "function",
        "x" * 40, "a=1",
    ]
)  # fmt: skip
texts = st.lists(fragments, max_size=14).map("".join)


@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", sorted(SPECS))
@given(
    text=texts,
    real=st.booleans(),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    stop=st.lists(st.sampled_from(["END", "\n\n", "```", "}\n"]), max_size=2),
    options=st.fixed_dictionaries(
        {
            "tools": st.booleans(),
            "in_reasoning": st.booleans(),
            "offered": st.sampled_from([OFFERED, None]),
            "max_calls": st.sampled_from([None, 1]),
        }
    ),
)
def test_property_any_chunks_give_the_same_events(
    name: str,
    text: str,
    real: bool,
    sizes: list[int],
    stop: list[str],
    options: dict[str, object],
) -> None:
    controls = CONTROLS.get(name, [*TAGS, *BARS]) if real else []
    whole = split(text, controls)
    chunked: list[Piece] = []
    for data, control in whole:
        at, cycle = 0, itertools.cycle(sizes)
        while not control and at < len(data):
            size = next(cycle)
            chunked.append((data[at : at + size], False))
            at += size
        chunked += [(data, True)] if control else []
    events = read(name, whole, stop=stop, **options)
    assert read(name, chunked, at_once=False, stop=stop, **options) == events
    # No call is ever broken, and none is in what the client shows as text only by half.
    for event in events:
        if isinstance(event, ToolCall):
            assert isinstance(json.loads(event.arguments), dict)


@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", sorted(SPECS))
@given(text=st.text('abc{}[]()<>"\\/:;,=`|_ \né', max_size=60))
def test_property_text_without_calls_stays_as_it_was(name: str, text: str) -> None:
    assert "".join(e.text for e in read(name, split(text)) if isinstance(e, Text)) == text
