"""Which tools the model sees, and a grammar that makes its calls what the client can run.

A call's arguments always fit the tool's schema. With `tool_choice` `required` or a name, the
answer is calls and nothing else; otherwise it is free up to what opens a call. How a family's
calls are written is in its spec (../chat/specs); the rules for them are made in callrules.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import JsonValue as Json

from ..chat.family import Spec
from ..engine.wire import Grammar, Hello
from ..errors import RequestError
from .callrules import rules_of
from .schema import ChatRequest, Function, ToolChoice

NOTHING: dict[str, Json] = {"type": "object", "properties": {}, "additionalProperties": False}
"""A tool without parameters takes none (OpenAI)."""


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
    said together with calls, or where calls are demanded of a model that lacks their tokens.
    """
    must = isinstance(body.tool_choice, ToolChoice) or body.tool_choice in ("required", "any")
    if not tools:
        return answer
    single = isinstance(body.tool_choice, ToolChoice) or body.parallel_tool_calls is False
    names = [tool.function.name for tool in tools]
    rules = rules_of(spec, hello, names, single=single)
    if rules is None:
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
    schemas = [(tool.param, _parameters(tool, strict=must)) for tool in tools]
    if must:
        text = rules.demanded
    elif answer is not None:
        text = rules.instead_of(f"@s{len(schemas)}")
        schemas.append((answer.param or "", answer.text or '{"type": "object"}'))
    elif rules.after_opening is not None:
        text = rules.after_opening
    else:
        return None  # Nothing tells the beginning of a call from text.
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
