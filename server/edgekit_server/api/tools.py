"""Which tools the model sees, and a grammar that makes its calls what the client can run.

A call's arguments always fit the tool's schema. With `tool_choice` `required` or a name, the
answer is calls and nothing else; otherwise it is free up to the control token that opens a call.
Call formats: mistral-common (see ../chat/specs).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import JsonValue as Json

from ..chat.family import Call, CallKind, Spec
from ..engine.wire import Grammar, Hello
from ..errors import RequestError
from .schema import ChatRequest, Function, ToolChoice

NOTHING: dict[str, Json] = {"type": "object", "properties": {}, "additionalProperties": False}
"""A tool without parameters takes none (OpenAI)."""
_ID = "/[a-zA-Z0-9]{9}/"


@dataclass(frozen=True, slots=True)
class Tool:
    """One function of the request; `at`: its place in the client's list."""

    at: int
    function: Function

    @property
    def shown(self) -> Json:
        """The tool as the template shows it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True)}

    @property
    def param(self) -> str:
        return f"tools[{self.at}].function.parameters"


def offered(body: ChatRequest) -> list[Tool]:
    """Return the tools to show the model, in the client's order.

    `none` shows none; a named function shows that one only. RequestError for a choice of nothing.
    """
    tools: list[Tool] = []
    for at, tool in enumerate(body.tools or []):
        if tool.get("type", "function") != "function":
            continue  # Hosted tools (web_search, namespace): agents send them to every server.
        try:
            tools.append(Tool(at, Function.model_validate(tool.get("function"))))
        except ValueError:
            raise RequestError(
                f"tools[{at}].function needs a name, and parameters that are an object",
                code="invalid_value",
                param=f"tools[{at}].function",
            ) from None
    choice = body.tool_choice
    if choice == "none":
        return []
    if isinstance(choice, ToolChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            raise RequestError(
                f"tool_choice names '{choice.function.name}', which is not among the tools",
                code="invalid_value",
                param="tool_choice",
            )
    if choice in ("required", "any") and not tools:
        raise RequestError("tool_choice needs tools", code="invalid_value", param="tool_choice")
    return tools


def grammar_with(
    answer: Grammar | None, body: ChatRequest, tools: list[Tool], spec: Spec, hello: Hello
) -> Grammar | None:
    """Return what an answer must match that may, or must, call tools.

    `answer`: what the text must match if there are no calls. RequestError where that cannot be
    said together with calls, or where calls are demanded of a family that has none.
    """
    must = isinstance(body.tool_choice, ToolChoice) or body.tool_choice in ("required", "any")
    if not tools:
        return answer
    call = _Ids.of(spec.call, hello) if spec.call is not None else None
    if call is None:
        if must:
            raise RequestError(
                "tool_choice: this model has no form of tool call that could be demanded",
                code="unsupported_parameter",
                param="tool_choice",
            )
        return answer
    if answer is not None and not must and not answer.kind.startswith("json"):
        raise RequestError(
            f"{answer.param} cannot be held together with tools; leave one out, or set "
            "tool_choice to none",
            code="invalid_value",
            param=answer.param,
        )
    single = isinstance(body.tool_choice, ToolChoice) or body.parallel_tool_calls is False
    schemas = [(tool.param, _parameters(tool, strict=must)) for tool in tools]
    rules = [call.rule(at, tool.function.name) for at, tool in enumerate(tools)]
    calls = call.several([f"c{at}" for at in range(len(tools))], single=single)
    if must:
        start = "start: calls"
    elif answer is not None:
        start = f"start: calls | @s{len(schemas)}"
        schemas.append((answer.param or "", answer.text or '{"type": "object"}'))
    else:
        start = f"start: (free | calls)*\nfree: <[^{','.join(map(str, call.closed(hello)))}]>"
    text = "\n".join([start, calls, *rules])
    return Grammar("lark", text, "tools", schemas, lenient=not must and answer is None)


def _parameters(tool: Tool, *, strict: bool) -> str:
    """Return the schema of a call's arguments, which are an object whatever it says."""
    given = tool.function.parameters or NOTHING
    if given.get("type", "object") != "object":
        if strict:
            raise RequestError(
                f"{tool.param}: arguments are an object", code="invalid_grammar", param=tool.param
            )
        given = {"type": "object"}
    return json.dumps({"type": "object", **given}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _Ids:
    """The tokens of a family's calls."""

    kind: CallKind
    open: int
    arguments: int | None
    id: int | None

    @classmethod
    def of(cls, call: Call, hello: Hello) -> _Ids | None:
        """Return None if this model lacks one of the family's tokens."""
        markers = [m for m in (call.open, call.arguments, call.id) if m is not None]
        if not all(marker in hello.control_ids for marker in markers):
            return None
        arguments, call_id = (
            None if m is None else hello.control_ids[m] for m in (call.arguments, call.id)
        )
        return cls(call.kind, hello.control_ids[call.open], arguments, call_id)

    def rule(self, at: int, name: str) -> str:
        """Return the rule of a call of one tool, whose arguments are @s{at}."""
        if self.kind is CallKind.JSON_LIST:
            head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
            with_id = f'(", \\"id\\": \\"" {_ID} "\\"")?'
            return f'c{at}: {_quoted(head)} @s{at} {with_id} "}}"'
        call_id = f"<[{self.id}]> {_ID} " if self.id is not None else ""
        return f"c{at}: <[{self.open}]> {_quoted(name)} {call_id}<[{self.arguments}]> @s{at}"

    def several(self, names: list[str], *, single: bool) -> str:
        """Return the rule of all calls of an answer."""
        one = f"one: {' | '.join(names)}"
        if self.kind is CallKind.JSON_LIST:
            more = "" if single else ' (", " one)*'
            return f'calls: <[{self.open}]> "[" one{more} "]"\n{one}'
        return f"calls: one{'' if single else '+'}\n{one}"

    def closed(self, hello: Hello) -> list[int]:
        """Return the tokens that free text may not have: a call's own, and the end."""
        ends = [hello.control_ids[hello.eos]] if hello.eos in hello.control_ids else []
        return [i for i in (self.open, self.arguments, self.id, *ends) if i is not None]


def _quoted(text: str) -> str:
    """Return a Lark string."""
    escaped = "".join(c if c.isprintable() and c not in '"\\' else _escape(c) for c in text)
    return f'"{escaped}"'


def _escape(char: str) -> str:
    return f"\\{char}" if char in '"\\' else f"\\u{{{ord(char):x}}}"
