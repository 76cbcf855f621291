"""Tools of the Responses dialect as chat knows them: flat functions, and namespaces of functions.

A namespace's functions are shown to the model beside the others, by their own names; where two
would be the same, by `namespace__name`. A call of one comes back with its own name and its
namespace. What runs at the vendor (web_search and the like) cannot run here and is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue as Json
from pydantic import ValidationError

from ..errors import RequestError
from .schema import Function

Choice = str | dict[str, Json]


@dataclass(frozen=True, slots=True)
class OwnTool:
    """One function. `where`: its place in the body; `shown`: its name as the model sees it."""

    where: str
    namespace: str | None
    function: Function
    strict: bool | None
    shown: str

    @property
    def as_chat(self) -> dict[str, Json]:
        """The tool in chat's form."""
        function = {**self.function.model_dump(exclude_none=True), "name": self.shown}
        return {"type": "function", "function": function}

    @property
    def as_sent(self) -> dict[str, Json]:
        """The tool in this dialect's form."""
        return {"type": "function", **self.function.model_dump(), "strict": self.strict}


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The functions of one request."""

    tools: tuple[OwnTool, ...] = ()

    def shown(self, name: str, namespace: str | None) -> str:
        """Return the name by which the model knows a function that an item names."""
        for tool in self.tools:
            if (tool.function.name, tool.namespace) == (name, namespace):
                return tool.shown
        return name

    def own(self, shown: str) -> tuple[str, str | None]:
        """Return (name, namespace) of the function that the model calls."""
        for tool in self.tools:
            if tool.shown == shown:
                return tool.function.name, tool.namespace
        return shown, None

    def echo(self) -> list[Json]:
        """Return the tools of the request that the model was shown, in the client's form."""
        said: list[Json] = []
        open_namespace: list[Json] | None = None
        last: str | None = None
        for tool in self.tools:
            if tool.namespace is None:
                said.append(tool.as_sent)
            elif tool.namespace == last and open_namespace is not None:
                open_namespace.append(tool.as_sent)
            else:
                open_namespace = [tool.as_sent]
                said.append({"type": "namespace", "name": tool.namespace, "tools": open_namespace})
            last = tool.namespace
        return said


def toolbox_of(tools: Sequence[dict[str, Json]] | None) -> Toolbox:
    """Return the functions among the tools; RequestError names one that is none."""
    found: list[OwnTool] = []
    for at, tool in enumerate(tools or []):
        kind = tool.get("type")
        if kind == "function":
            found.append(_function(tool, f"tools[{at}]", None))
        elif kind == "namespace":
            found += _namespace(tool, f"tools[{at}]")
        elif not isinstance(kind, str):
            raise _bad(f"tools[{at}].type", "is missing")
    count = Counter(tool.function.name for tool in found)
    return Toolbox(tuple(_named(tool) if count[tool.shown] > 1 else tool for tool in found))


def choice_of(choice: Choice | None, box: Toolbox) -> tuple[Toolbox, str | dict[str, Json] | None]:
    """Return (tools to show, choice in chat's form); RequestError for a choice of nothing."""
    if choice is None or isinstance(choice, str):
        if choice not in (None, "none", "auto", "required"):
            raise _bad("tool_choice", "is none, auto, required, or an object")
        return box, choice
    kind = choice.get("type")
    if kind == "function":
        tool = _find(choice, box, "tool_choice")
        return box, {"type": "function", "function": {"name": tool.shown}}
    if kind == "allowed_tools":
        mode, allowed = choice.get("mode", "auto"), choice.get("tools")
        if mode not in ("auto", "required") or not isinstance(allowed, list):
            raise _bad("tool_choice", "of type allowed_tools has a mode and tools")
        kept = {
            _find(item, box, f"tool_choice.tools[{at}]").shown
            for at, item in enumerate(allowed)
            if isinstance(item, dict) and item.get("type", "function") == "function"
        }
        return Toolbox(tuple(tool for tool in box.tools if tool.shown in kept)), str(mode)
    raise RequestError(
        f"tool_choice demands a tool of type {kind!r}; this server runs no tools of its own",
        code="unsupported_parameter",
        param="tool_choice",
    )


def _function(tool: dict[str, Json], where: str, namespace: str | None) -> OwnTool:
    strict = tool.get("strict")
    try:
        function = Function.model_validate(tool)
    except ValidationError:
        raise _bad(where, "needs a name, and parameters that are an object") from None
    strict = strict if isinstance(strict, bool) else None
    return OwnTool(where, namespace, function, strict, function.name)


def _namespace(tool: dict[str, Json], where: str) -> list[OwnTool]:
    name, nested = tool.get("name"), tool.get("tools")
    if not isinstance(name, str) or not name or not isinstance(nested, list):
        raise _bad(where, "of type namespace has a name and tools")
    found = []
    for at, inner in enumerate(nested):
        place = f"{where}.tools[{at}]"
        if not isinstance(inner, dict):
            raise _bad(place, "is not an object")
        if inner.get("type", "function") == "function":
            found.append(_function(inner, place, name))
    return found


def _named(tool: OwnTool) -> OwnTool:
    """Return the tool by its full name, if it has one."""
    if tool.namespace is None:
        return tool
    shown = f"{tool.namespace}__{tool.function.name}"
    return OwnTool(tool.where, tool.namespace, tool.function, tool.strict, shown)


def _find(choice: dict[str, Json], box: Toolbox, where: str) -> OwnTool:
    name, namespace = choice.get("name"), choice.get("namespace")
    nested = choice.get("function")  # chat's form, which some clients send here too
    if name is None and isinstance(nested, dict):
        name = nested.get("name")
    for tool in box.tools:
        if tool.function.name == name and namespace in (None, tool.namespace):
            return tool
    raise _bad(where, f"names {name!r}, which is not among the tools")


def _bad(where: str, what: str) -> RequestError:
    return RequestError(f"{where} {what}", code="invalid_value", param=where)
