"""How a model family writes reasoning and tool calls, and what it must be shown: specs/*.toml."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any


class CallKind(StrEnum):
    """How the body of a tool call is written."""

    HEAD_THEN_JSON = "head_then_json"
    """`open` head {arguments}; the pattern `head` finds the name, and perhaps an id."""
    JSON = "json"
    """`open` {"name", "arguments"}"""
    JSON_LIST = "json_list"
    """`open` [{"name", "arguments", "id"?}, ...]"""
    PYTHONIC = "pythonic"
    """`open` [f(a="x"), g(b=1)]"""
    XML = "xml"
    """`open` <function=name><parameter=key>value</parameter></function>"""


@dataclass(frozen=True, slots=True)
class Reasoning:
    open: str
    close: str


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a family's models write calls."""

    kind: CallKind
    open: tuple[str, ...]
    """What begins it. One that ends with a bracket has the first character of the body in it."""
    close: tuple[str, ...] = ()
    """What may follow a call and belongs to it."""
    inner: tuple[str, ...] = ()
    """Control tokens within the body; any other that is no marker is passed over."""
    head: str = ""
    guess: bool = False
    """Ordinary text that may be a call: one only if it names a tool that was offered."""
    line: bool = False
    """Only at the start of a line."""
    written: str = ""
    """How one call is written, for demanding it; {name}, {id} and {json} are filled in."""
    many: tuple[str, str, str] = ("", "", "")
    """What goes before all calls of an answer, between two, and after all."""


@dataclass(frozen=True, slots=True)
class Channels:
    """Messages with a header: `open` ... `message` text `end` (harmony)."""

    open: tuple[str, ...]
    message: str
    end: tuple[str, ...]
    reasoning: str
    """Pattern of the headers of reasoning."""
    call: str
    """Pattern of the headers of calls; finds the name."""
    lead: str = ""
    """Reasoning that may go before, as it is written; {thoughtEND} is its text, then END."""
    final: str = ""
    """The header of the message that the client sees."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One family. Unless `text_markers`, markers are control tokens: as letters they are text."""

    family: str
    recognise_all: tuple[str, ...] = ()
    recognise_none: tuple[str, ...] = ()
    order: int = 100
    """Lower is tried first."""
    text_markers: bool = False
    """Markers count as ordinary text too: whether they are control tokens is the vocabulary's."""
    trim: bool = False
    """Line breaks around reasoning and calls belong to the format, not to the text."""
    emulated: bool = False
    """The template cannot show tools: they are told in text, in our own words (adapt.py)."""
    fold_system: bool = False
    """The template has no place for a system turn: it goes into the first user turn."""
    single_calls: bool = False
    """The template takes one call per assistant turn."""
    whole_tools: bool = False
    """The template uses a tool's description and parameters without asking whether it has any."""
    context: tuple[tuple[str, str], ...] = ()
    """What else the template is given."""
    reasoning: Reasoning | None = None
    forms: tuple[Form, ...] = ()
    """The first is the one that is demanded when a call must come."""
    channels: Channels | None = None

    @property
    def reasons(self) -> bool:
        """Whether models of this family may reason before they answer."""
        return self.reasoning is not None or self.channels is not None

    @property
    def call(self) -> Form | None:
        """The form of call that is demanded; None if the family has no calls."""
        return self.forms[0] if self.forms else None


PLAIN = Spec("plain")
"""Nothing but text."""
_LISTS = ("open", "close", "inner", "many", "end")


@cache
def load_specs() -> tuple[Spec, ...]:
    """Read every spec that is shipped, in the order in which they are tried."""
    folder = files(__package__) / "specs"
    texts = (f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".toml"))
    return tuple(sorted(map(parse_spec, texts), key=lambda spec: (spec.order, spec.family)))


def parse_spec(text: str) -> Spec:
    """Turn one TOML text into a Spec; TypeError or ValueError on keys or kinds unknown here."""
    table = tomllib.loads(text)
    reasoning, channels = table.pop("reasoning", None), table.pop("channels", None)
    forms = table.pop("call", [])
    for key in ("recognise_all", "recognise_none"):
        table[key] = tuple(table.get(key, ()))
    table["context"] = tuple(table.get("context", {}).items())
    return Spec(
        **table,
        reasoning=Reasoning(**reasoning) if reasoning else None,
        forms=tuple(Form(**_tuples({**f, "kind": CallKind(f["kind"])})) for f in forms),
        channels=Channels(**_tuples(channels)) if channels else None,
    )


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if k in _LISTS else v for k, v in table.items()}


def recognise(template: str | None) -> tuple[Spec, str]:
    """Return the family whose markers a chat template uses, and the reason."""
    if template is None:
        return PLAIN, "the model has no chat template: replies are plain text"
    for spec in load_specs():
        if not all(m in template for m in spec.recognise_all) or any(
            m in template for m in spec.recognise_none
        ):
            continue
        if spec.recognise_all:
            return spec, f"the chat template uses {' and '.join(spec.recognise_all)}"
        if re.search(r"\btools\b", template):
            return replace(spec, emulated=False), (
                "the chat template shows tools, with no call markers known here: calls are "
                "read in every common form"
            )
        return spec, (
            "the chat template uses no known tool-call markers and shows no tools: "
            "they are told in text"
        )
    return PLAIN, "the chat template uses no known tool-call markers: replies are plain text"
