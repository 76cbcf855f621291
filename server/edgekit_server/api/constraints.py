"""What the client asks the answer to match, in any dialect's fields, as one grammar.

OpenAI's `response_format`, llama.cpp's `json_schema` and `grammar`, vLLM's `guided_*` and
`structured_outputs`. The engine compiles it; what cannot be held is a 400, never free text.
"""

from __future__ import annotations

import json
from dataclasses import replace

from pydantic import JsonValue as Json

from ..chat.family import Spec
from ..chat.template import Rendered
from ..engine.wire import Grammar, Hello
from ..errors import RequestError
from .callrules import after_thought, final_message
from .schema import ConstrainedFields, ResponseFormat

_STRUCTURED = {
    "json": "json_schema", "json_schema": "json_schema", "json_object": "json_object",
    "regex": "regex", "choice": "choice", "grammar": "gbnf",
}  # fmt: skip
"""vLLM's kinds by our names. Its grammars are EBNF, which the engine tells from Lark."""


def grammar_of(fields: ConstrainedFields) -> Grammar | None:
    """Return the grammar that a request asks for; RequestError for two, or one that is no such."""
    found = [
        grammar
        for grammar in (
            _response_format(fields.response_format),
            _given("json_schema", fields.json_schema_, "json_schema"),
            _given("gbnf", fields.grammar or None, "grammar"),
            _given("json_schema", fields.guided_json, "guided_json"),
            _given("regex", fields.guided_regex, "guided_regex"),
            _given("choice", _list(fields.guided_choice), "guided_choice"),
            _given("gbnf", fields.guided_grammar, "guided_grammar"),
            *_structured(fields.structured_outputs),
        )
        if grammar is not None
    ]
    if len(found) > 1:
        raise RequestError(
            f"{found[0].param} and {found[1].param} both say what the answer must match; "
            "give one of them",
            code="invalid_value",
            param=found[1].param,
        )
    return found[0] if found else None


def after_reasoning(
    grammar: Grammar, spec: Spec, rendered: Rendered, hello: Hello, *, thinking: bool | None
) -> Grammar:
    """Let the model reason first, where it does: the grammar holds from the end of that on."""
    if spec.channels is not None and grammar.param != "tools":
        rule = final_message(spec, hello)
        return replace(grammar, lead_rule=rule) if rule else grammar
    if spec.reasoning is None:
        return grammar
    start, end = (hello.control_ids.get(m) for m in (spec.reasoning.open, spec.reasoning.close))
    if end is None or start is None:
        return _after_text(grammar, spec, rendered, hello, thinking=thinking)
    if in_reasoning(spec, rendered):
        return replace(grammar, lead=[end])
    # Families share their markers with models that never think: those have no such prompt.
    told = any(real and spec.reasoning.open in text for text, real in rendered.pieces)
    return replace(grammar, lead=[start, end]) if told and thinking is not False else grammar


def _after_text(
    grammar: Grammar, spec: Spec, rendered: Rendered, hello: Hello, *, thinking: bool | None
) -> Grammar:
    """The same, where the markers are ordinary text in this vocabulary."""
    if spec.reasoning is None or not spec.text_markers:
        return grammar
    thought = spec.reasoning
    if in_reasoning(spec, rendered):
        return replace(grammar, lead_rule=after_thought(thought, begun=True))
    closed = rendered.pieces and rendered.pieces[-1][0].rstrip().endswith(thought.close)
    thinks = thought.open in (hello.chat_template or "") and thinking is not False and not closed
    return replace(grammar, lead_rule=after_thought(thought, begun=False)) if thinks else grammar


def in_reasoning(spec: Spec, rendered: Rendered) -> bool:
    """Whether the prompt has opened the reasoning that the answer goes on with."""
    last = rendered.pieces[-1][0].rstrip() if rendered.pieces else ""
    return spec.reasoning is not None and last.endswith(spec.reasoning.open)


def _list(choices: list[str] | None) -> Json:
    return None if choices is None else [*choices]


def _given(kind: str, value: Json, param: str) -> Grammar | None:
    """Return a grammar from a field that holds its text, or JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Grammar(kind, text, param)


def _response_format(given: ResponseFormat | None) -> Grammar | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object" and given.schema_ is None:
        return Grammar("json_object", "", "response_format")
    if given.type not in ("json_object", "json_schema"):
        raise RequestError(
            f"response_format: there is no type {given.type!r}; "
            "use text, json_object or json_schema",
            code="invalid_value",
            param="response_format.type",
        )
    nested = given.json_schema or {}
    schema: Json = given.schema_
    param = "response_format.schema"
    if schema is None:
        schema, param = nested.get("schema"), "response_format.json_schema.schema"
    if schema is None:
        raise RequestError(f"{param} is missing", code="invalid_value", param=param)
    return _given("json_schema", schema, param)


def _structured(given: dict[str, Json] | None) -> list[Grammar | None]:
    """Return vLLM's structured_outputs; its other keys are hints, or refused."""
    found: list[Grammar | None] = []
    for key, value in (given or {}).items():
        param = f"structured_outputs.{key}"
        kind = _STRUCTURED.get(key)
        if value is None or value is False:
            continue
        if kind == "json_object":
            found.append(Grammar(kind, "", param))
        elif kind is not None:
            found.append(_given(kind, value, param))
        elif key == "structural_tag":
            raise RequestError(f"{param} is not supported", code="invalid_value", param=param)
    return found
