"""Which markers a model family writes around reasoning and tool calls: specs/*.toml, as data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files


class CallKind(StrEnum):
    """How the body of a tool call is written."""

    NAME_THEN_JSON = "name_then_json"
    """`open` name [`id` id] `arguments` {json object}"""
    JSON_LIST = "json_list"
    """`open` [{"name", "arguments", "id"?}, ...]"""


@dataclass(frozen=True, slots=True)
class Reasoning:
    open: str
    close: str


@dataclass(frozen=True, slots=True)
class Call:
    kind: CallKind
    open: str
    arguments: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """One family. Markers are control tokens: the same letters as ordinary text mean nothing."""

    family: str
    recognise_all: tuple[str, ...] = ()
    recognise_none: tuple[str, ...] = ()
    order: int = 100
    """Lower is tried first."""
    reasoning: Reasoning | None = None
    call: Call | None = None


PLAIN = Spec("plain")


@cache
def load_specs() -> tuple[Spec, ...]:
    """Read every spec that is shipped, in the order in which they are tried."""
    folder = files(__package__) / "specs"
    texts = (f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".toml"))
    return tuple(sorted(map(parse_spec, texts), key=lambda spec: (spec.order, spec.family)))


def parse_spec(text: str) -> Spec:
    """Turn one TOML text into a Spec; TypeError or ValueError on keys or kinds unknown here."""
    table = tomllib.loads(text)
    reasoning, call = table.pop("reasoning", None), table.pop("call", None)
    for key in ("recognise_all", "recognise_none"):
        table[key] = tuple(table.get(key, ()))
    return Spec(
        **table,
        reasoning=Reasoning(**reasoning) if reasoning else None,
        call=Call(**{**call, "kind": CallKind(call["kind"])}) if call else None,
    )


def recognise(template: str | None) -> tuple[Spec, str]:
    """Return the family whose markers a chat template uses, and the reason."""
    if template is None:
        return PLAIN, "the model has no chat template: replies are plain text"
    for spec in load_specs():
        if all(m in template for m in spec.recognise_all) and not any(
            m in template for m in spec.recognise_none
        ):
            return spec, f"the chat template uses {' and '.join(spec.recognise_all)}"
    return PLAIN, "the chat template uses no known tool-call markers: replies are plain text"
