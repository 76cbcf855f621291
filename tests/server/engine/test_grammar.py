"""A client's grammar to llguidance's text, and what is refused before it gets there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit_server.engine import grammar, schema
from edgekit_server.engine.wire import Grammar
from edgekit_server.errors import GrammarError


def checked(value: object) -> Any:
    return schema.checked(json.dumps(value))


def nested(depth: int) -> dict[str, object]:
    made: dict[str, object] = {"type": "string"}
    for _ in range(depth - 1):
        made = {"type": "array", "items": made}
    return made


PROPERTIES = {"a": {"type": "string"}, "b": {"type": "integer"}}


@pytest.mark.parametrize(
    "value",
    [
        {"properties": PROPERTIES},
        {"type": "object", "properties": PROPERTIES, "required": ["b"], "title": "x"},
    ],
)
def test_an_object_that_lists_its_properties_is_closed(value: dict[str, Any]) -> None:
    assert checked(value) == {**value, "additionalProperties": False}


OPEN: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "object", "properties": PROPERTIES, "additionalProperties": True},
    {"type": "object", "properties": PROPERTIES, "additionalProperties": {"type": "null"}},
    {"type": "object", "properties": PROPERTIES, "patternProperties": {"^x": {}}},
    {"type": "object", "properties": PROPERTIES, "minProperties": 1},
    {"type": "object", "properties": PROPERTIES, "required": ["c"]},
    {"type": ["object", "null"], "properties": PROPERTIES},
    {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
    {"properties": {"a": {}}, "anyOf": [{"required": ["x"]}, {"required": ["y"]}]},
    {"$ref": "#/$defs/q", "required": ["z"], "$defs": {"q": {"properties": {"r": {}}}}},
    {"enum": [{"properties": {"a": 1}}]},
    {"const": {"properties": {"a": 1}}},
]  # fmt: skip


@pytest.mark.parametrize("value", OPEN, ids=range(len(OPEN)))
def test_nothing_is_closed_where_that_could_shut_something_out(value: dict[str, Any]) -> None:
    assert checked(value) == value


def test_what_says_nothing_is_left_out() -> None:
    made = checked({"additionalProperties": {}, "propertyNames": {"type": "string"}})
    assert made == {"additionalProperties": {}}
    assert "propertyNames" in checked({"propertyNames": {"maxLength": 3}})


def test_nested_objects_are_closed() -> None:
    made = checked({"properties": {"x": {"items": {"properties": {"y": {}}}}}})
    assert made["properties"]["x"]["items"]["additionalProperties"] is False


BAD: list[tuple[object, str]] = [
    ([1], "object"),
    ({"x-guidance": {"lenient": True}}, "x-guidance"),
    ({"properties": {"a": {"items": {"x-guidance": {}}}}}, "#/properties/a/items: x-guidance"),
    ({"type": "object", "minProperties": 2}, "minProperties"),
    ({"properties": {f"p{i}": {} for i in range(2001)}}, "2001 properties"),
    (nested(schema.MAX_DEPTH + 1), "nested"),
]


@pytest.mark.parametrize(("value", "says"), BAD, ids=[says for _, says in BAD])
def test_bad_schemas(value: object, says: str) -> None:
    with pytest.raises(GrammarError, match=says):
        checked(value)


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"minimum": NaN}', "[" * 100_000])
def test_no_json(text: str) -> None:
    with pytest.raises(GrammarError, match="JSON"):
        schema.checked(text)


def test_deepest_schema_passes() -> None:
    assert checked(nested(schema.MAX_DEPTH))


@pytest.mark.parametrize("kind", ["json_schema", "regex", "choice", "lark", "gbnf"])
def test_size_is_bounded(kind: str) -> None:
    with pytest.raises(GrammarError, match="the most is"):
        grammar.source(Grammar(kind, " " * (grammar.MAX_BYTES + 1)))


def test_the_schemas_count_for_the_size() -> None:
    schemas = [("p", " " * 200_000), ("q", " " * 100_000)]
    with pytest.raises(GrammarError, match="300012 bytes"):
        grammar.source(Grammar("lark", "start: @s0  ", schemas=schemas))


def test_unknown_kind() -> None:
    with pytest.raises(GrammarError, match="'ebnf'"):
        grammar.source(Grammar("ebnf", "x"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '["a", 1]', '["a", ""]', '"a"', "[" * 5000, '["\\ud800"]']
)
def test_bad_choices(text: str) -> None:
    with pytest.raises(GrammarError):
        grammar.source(Grammar("choice", text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        'root ::= "a',
        "root ::= [a",
        "root ::= x",
        'other ::= "a"',
        'root ::= "\\ud800"',
        'root ::= "\\U00110000"',
        "root ::= " + "(" * 20_000,
        "\n".join(f'r{i} ::= "a"' for i in range(501)),
        'root ::= "' + "a" * 70_000 + '"',
    ],
)
def test_bad_gbnf(text: str) -> None:
    with pytest.raises(GrammarError):
        grammar.source(Grammar("gbnf", text))


def test_a_schema_at_fault_is_named() -> None:
    schemas = [("tools[0]", "{}"), ("tools[3]", '{"x-guidance": 1}')]
    with pytest.raises(GrammarError) as caught:
        grammar.source(Grammar("lark", "start: @s0 | @s1", "tools", schemas))
    assert caught.value.param == "tools[3]"
