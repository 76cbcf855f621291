"""Calls written as tags, Qwen3-Coder's way: values are raw text, typed by the tool's schema."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue as Json

from .calls import Found, compact, loads
from .scan import Scanner

MAX_NAME = 300
FUNCTION, PARAMETER, END = "<function=", "<parameter=", "</function>"
_ENDS = {"name": ">", "key": ">", "value": "</parameter>"}
_PYTHON = {"True": True, "False": False, "None": None}


class XmlBody:
    """<function=name> <parameter=key> value </parameter> ... </function>."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Json] | None], *, begun: bool) -> None:
        """`begun`: the marker before it ended with the function's tag."""
        self.closed = self.failed = False
        self._schemas = schemas
        self._name = self._key = self._tag = ""
        self._pairs: dict[str, str] = {}
        self._held: list[str] = []
        self._n = 0
        self._step = ""
        self._seek = Scanner([])
        self._go("name" if begun else "tag")

    def feed(self, text: str) -> int:
        at = 0
        while at < len(text) and not (self.closed or self.failed):
            step = self._tagged if self._step == "tag" else self._until_end
            at = step(text, at)
        return at

    def calls(self) -> list[Found]:
        properties = (self._schemas.get(self._name) or {}).get("properties")
        types = properties if isinstance(properties, dict) else {}
        value = {key: coerce(text, types.get(key)) for key, text in self._pairs.items()}
        return [Found(self._name, "", compact(value))]

    def _go(self, step: str) -> None:
        self._step, self._tag, self._held, self._n = step, "", [], 0
        if step in _ENDS:
            self._seek = Scanner([_ENDS[step]])

    def _tagged(self, text: str, at: int) -> int:
        """White space, then one of the tags that may come here, a character at a time."""
        may = (PARAMETER, END) if self._name else (FUNCTION,)
        if not self._tag:
            at += len(text[at:]) - len(text[at:].lstrip())
        while at < len(text) and self._tag not in may:
            self._tag += text[at]
            if not any(tag.startswith(self._tag) for tag in may):
                self.failed = True
                return at
            at += 1
        if self._tag == END:
            self.closed = True
        elif self._tag in may:
            self._go("name" if self._tag == FUNCTION else "key")
        return at

    def _until_end(self, text: str, at: int) -> int:
        short = self._step != "value"
        part = text[at : at + MAX_NAME - self._n] if short else text[at:]
        scan = self._seek.feed(part)
        self._held.append(scan.text)
        self._n += len(part) - len(scan.rest)
        end = at + len(part) - len(scan.rest)
        if scan.match is not None:
            self._ended("".join(self._held))
        elif short and self._n >= MAX_NAME:
            self.failed = True
        return end

    def _ended(self, held: str) -> None:
        if self._step == "name":
            self._name = held.strip()
            self.failed = not self._name
        elif self._step == "key":
            self._key = held.strip()
            self.failed = not self._key or self._key in self._pairs
            self._go("value")
            return
        else:
            # The template writes a line break after the opening tag and before the closing one.
            self._pairs[self._key] = held.removeprefix("\n").removesuffix("\n")
        self._go("tag")


def coerce(text: str, schema: Json) -> object:
    """Return a value of the type that a property's schema asks for; the text where it fits none."""
    kinds = _kinds(schema)
    if "string" in kinds:
        return None if text.strip() == "null" and "null" in kinds else text
    if not kinds and text.lstrip()[:1] not in ("{", "["):
        return text
    word = text.strip()
    value = _PYTHON[word] if word in _PYTHON else loads(word)
    if value is None:
        return None if word in ("null", "None") and (not kinds or "null" in kinds) else text
    if isinstance(value, float) and value.is_integer() and "number" not in kinds:
        value = int(value) if "integer" in kinds else value
    return value if not kinds or _kind(value) & kinds else text


def _kinds(schema: Json) -> set[str]:
    """Return the types that a schema allows; empty where it does not say."""
    if not isinstance(schema, dict):
        return set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {k for k in kind if isinstance(k, str)}
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return set().union(*(_kind(value) for value in values))
    for key in ("anyOf", "oneOf"):
        several = schema.get(key)
        if isinstance(several, list):
            found = [_kinds(item) for item in several]
            return set().union(*found) if all(found) else set()
    return set()


def _kind(value: object) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
        case dict():
            return {"object"}
    return {"null"}
