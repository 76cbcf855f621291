"""What is asked. Seeded: every server of a round gets the same, no two rounds do."""

from __future__ import annotations

import random
import re
import string

NOUNS = ("entry", "record", "ticket", "result", "account", "message", "node", "token", "path")
VERBS = ("load", "store", "check", "merge", "render", "split", "count", "resolve")


def words(rng: random.Random, n: int) -> str:
    """Return n words of three letters; each is one token of the synthetic vocabulary."""
    return "".join(" " + "".join(rng.choices(string.ascii_lowercase, k=3)) for _ in range(n))


def code(rng: random.Random, n_functions: int) -> str:
    """Return plain Python, about 70 tokens of pocket a function."""
    parts = []
    for i in range(n_functions):
        noun, verb = rng.choice(NOUNS), rng.choice(VERBS)
        parts.append(
            f"def {verb}_{noun}_{i}({noun}, default=None):\n"
            f'    """Return the {noun} after a {verb}, or the default."""\n'
            f"    if {noun} is None:\n"
            f"        return default\n"
            f"    for item in {noun}.items:\n"
            f"        if item.name == default:\n"
            f"            return item.value\n"
            f"    return {noun}\n"
        )
    return "\n\n".join(parts)


def edit(rng: random.Random, n_functions: int) -> str:
    """Return a request to rename one thing in a file, in the wording pocket was trained on."""
    text = code(rng, n_functions)
    old = rng.choice(re.findall(r"def (\w+)", text))
    new = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    return f"Rename {old} to {new}:\n```python\n{text}```"


def item_schema(n_items: int) -> dict[str, object]:
    """Return the schema of an array of exactly n small objects."""
    item = {
        "type": "object",
        "properties": {
            "id": {"type": "integer", "minimum": 0, "maximum": 9999},
            "name": {"type": "string", "maxLength": 24},
            "kind": {"enum": ["file", "folder", "link"]},
            "done": {"type": "boolean"},
        },
        "required": ["id", "name", "kind", "done"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": item, "minItems": n_items, "maxItems": n_items}
        },
        "required": ["items"],
        "additionalProperties": False,
    }


SCHEMAS: tuple[dict[str, object], ...] = (
    item_schema(1),
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1, "maxLength": 16},
            "degrees": {"type": "number", "minimum": -90, "maximum": 60},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city", "degrees", "unit"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "answer": {"anyOf": [{"type": "null"}, {"type": "boolean"}, {"const": "unknown"}]},
            "tags": {
                "type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,8}$"},
                "maxItems": 3,
            },
        },
        "required": ["answer", "tags"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "pair": {
                "type": "object",
                "properties": {"left": {"type": "integer"}, "right": {"type": "integer"}},
                "required": ["left", "right"],
                "additionalProperties": False,
            }
        },
        "type": "object",
        "properties": {"first": {"$ref": "#/$defs/pair"}, "second": {"$ref": "#/$defs/pair"}},
        "required": ["first"],
        "additionalProperties": False,
    },
)  # fmt: skip
"""Small ones for counting how many outputs hold."""
