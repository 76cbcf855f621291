"""Checks of a client's JSON schema before llguidance sees it. Pure.

llguidance refuses keywords that it knows and does not hold; here is what it would let through:
schemas that are too deep or too wide, counts of properties that it cannot hold, and its own
switches, which may turn its refusals off. An object that lists its properties and says nothing of
others is closed: the answer still fits the schema, and a model cannot go on inventing keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from edgekit_server.errors import GrammarError

MAX_DEPTH = 48
MAX_PROPERTIES = 2000
"""Of one object. The time to compile optional ones grows with the square: 0.25 s for these."""

Schema = dict[str, Any]

_VALUES = ("const", "enum", "default", "examples", "example")
"""Keywords whose value is data, not a schema."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value is schemas by name."""
_OPEN = frozenset(
    ("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames",
     "minProperties", "maxProperties", "allOf", "anyOf", "oneOf", "not", "if", "$ref")
)  # fmt: skip
_NOTES = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly",
     "discriminator",
     "writeOnly", "$comment", "$defs", "definitions", "$schema", "$id", "id")
)  # fmt: skip
"""Keywords that constrain nothing."""


def checked(text: str) -> Schema | bool:
    """Return the schema, closed where that is safe. Raises GrammarError."""
    try:
        root = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is no JSON: {error}") from None
    if isinstance(root, bool):
        return root
    if not isinstance(root, dict):
        raise GrammarError("a schema is an object")
    nodes = list(_nodes(root))
    for node, where in nodes:
        _check(node, where)
        if node.get("propertyNames") in ({}, {"type": "string"}, True):
            del node["propertyNames"]  # says nothing; generators of schemas write it for maps
    if not any(_is_joined(node) for node, _ in nodes):
        for node, _ in nodes:
            _close(node)
    return root


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _nodes(root: Schema) -> Iterator[tuple[Schema, str]]:
    """Yield every schema in a schema with its path; GrammarError beyond MAX_DEPTH."""
    todo: list[tuple[Any, str, int]] = [(root, "#", 1)]
    while todo:
        node, where, depth = todo.pop()
        if depth > MAX_DEPTH and isinstance(node, (dict, list)):
            raise GrammarError(f"the schema is nested more than {MAX_DEPTH} deep")
        if isinstance(node, list):
            todo += [(item, f"{where}/{at}", depth + 1) for at, item in enumerate(node)]
        elif isinstance(node, dict):
            yield node, where
            for key, value in node.items():
                if key in _MAPS and isinstance(value, dict):
                    todo += [(v, f"{where}/{key}/{k}", depth + 1) for k, v in value.items()]
                elif key not in _VALUES:
                    todo.append((value, f"{where}/{key}", depth + 1))


def _check(node: Schema, where: str) -> None:
    if "x-guidance" in node:
        raise GrammarError(f"{where}: x-guidance is not for clients")
    properties = node.get("properties")
    n_properties = len(properties) if isinstance(properties, dict) else 0
    if n_properties > MAX_PROPERTIES:
        raise GrammarError(f"{where}: {n_properties} properties; the most are {MAX_PROPERTIES}")
    least, required = node.get("minProperties"), node.get("required")
    n_required = len(required) if isinstance(required, list) else 0
    if isinstance(least, int) and least > max(1, n_required):
        # Names of further properties are free and may repeat, so counting them proves nothing.
        raise GrammarError(f"{where}: minProperties {least} with {n_required} required names")


def _is_joined(node: Schema) -> bool:
    """Whether several schemas hold for one value: closing one would shut the others' keys out."""
    if "allOf" in node or "$dynamicRef" in node:
        return True
    joins = any(key in node for key in ("$ref", "anyOf", "oneOf"))
    return joins and len(node.keys() - _NOTES) > 1


def _close(node: Schema) -> None:
    properties, required = node.get("properties"), node.get("required", [])
    if (
        isinstance(properties, dict)
        and isinstance(required, list)
        and node.get("type", "object") == "object"
        and not _OPEN & node.keys()
        and all(isinstance(name, str) and name in properties for name in required)
    ):
        node["additionalProperties"] = False
