"""Turns as one family's template takes them: tools told in text, systems folded, calls split.

Some templates know no tools, no system turn, or one call a turn; without this they raise, or say
nothing of what the client sent. Our own words for the tools ask for the form of call that the
family's spec puts first, which is also what the grammar holds the answer to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from pydantic import JsonValue as Json

from .calls import compact
from .family import Spec
from .normalise import Turn, joined

_HOW = """You can use the tools below. To call one, write

{example}

with the tool's name and arguments that fit its parameters; write one such block for each call, \
and nothing after the last. The results come back in <tool_response> blocks. Call a tool only if \
it helps to answer; otherwise answer in plain words.

The tools, each a JSON object:
{tools}"""
_EXAMPLE = {"{quoted}": '"TOOL"', "{name}": "TOOL", "{json}": '{"ARGUMENT": "VALUE"}'}


def adapted(
    turns: Sequence[Turn], tools: list[Json] | None, spec: Spec
) -> tuple[list[Turn], list[Json] | None]:
    """Return normalised turns, and tools, in the form that the family's template renders."""
    made, shown = list(turns), tools or None
    if spec.emulated and spec.call is not None:
        made = joined([_told(turn, spec) for turn in made])
        if shown:
            made = _with_system(made, _instructions(shown, spec))
        shown = None
    if spec.channels is not None:
        made = [_thinking(turn) for turn in made]
    if spec.whole_tools and shown:
        shown = [_whole(tool) for tool in shown]
    if spec.fold_system:
        made = _folded(made)
    if spec.single_calls:
        made = _split(made)
    return made, shown


def _instructions(tools: list[Json], spec: Spec) -> str:
    functions = [tool.get("function") if isinstance(tool, dict) else tool for tool in tools]
    return _HOW.format(
        example=_filled(spec, _EXAMPLE), tools="\n".join(compact(f) for f in functions)
    )


def _thinking(turn: Turn) -> Turn:
    """Return a turn with its reasoning where harmony's template looks for it: not beside text."""
    if "reasoning_content" not in turn:
        return turn
    rest = {key: value for key, value in turn.items() if key != "reasoning_content"}
    return rest if turn["content"] else {**rest, "thinking": turn["reasoning_content"]}


def _whole(tool: Json) -> Json:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(function, dict):
        return tool
    blank: dict[str, Json] = {"description": "", "parameters": {"type": "object", "properties": {}}}
    return {**tool, "function": {**blank, **function}}


def _filled(spec: Spec, values: dict[str, str]) -> str:
    assert spec.call is not None
    text = spec.call.written
    for hole, value in values.items():
        text = text.replace(hole, value)
    return text


def _told(turn: Turn, spec: Spec) -> Turn:
    """Return a turn without calls or results: they are in its text."""
    content = cast("str", turn["content"])
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = turn.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return turn
    texts = [content] if content else []
    for call in calls:
        function = cast("dict[str, Json]", cast("dict[str, Json]", call)["function"])
        name, arguments = cast("str", function["name"]), function["arguments"]
        written = arguments if isinstance(arguments, str) else compact(arguments)
        # What a call says goes in last, so that no letters in it are taken for a hole.
        holes = {"{quoted}": json.dumps(name, ensure_ascii=False), "{name}": name}
        before, after = _filled(spec, {}).split("{json}")
        for hole, value in holes.items():
            before, after = before.replace(hole, value, 1), after.replace(hole, value, 1)
        texts.append(f"{before}{written}{after}")
    return {"role": "assistant", "content": "\n".join(texts)}


def _with_system(turns: list[Turn], text: str) -> list[Turn]:
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _folded(turns: list[Turn]) -> list[Turn]:
    """Put the system's text before that of the first user turn."""
    if not turns or turns[0]["role"] != "system":
        return turns
    system, rest = cast("str", turns[0]["content"]), turns[1:]
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": system}, *rest]


def _split(turns: list[Turn]) -> list[Turn]:
    """Give each call a turn of its own, with its result after it, and text one before them."""
    made: list[Turn] = []
    at = 0
    while at < len(turns):
        turn = turns[at]
        at += 1
        calls = turn.get("tool_calls")
        if not isinstance(calls, list) or not calls:
            made.append(turn)
            continue
        results: list[Turn] = []
        while at < len(turns) and turns[at]["role"] == "tool":
            results.append(turns[at])
            at += 1
        if turn["content"]:
            made.append({"role": "assistant", "content": turn["content"]})
        for call in calls:
            made.append({"role": "assistant", "content": "", "tool_calls": [call]})
            call_id = call.get("id") if isinstance(call, dict) else None
            its = [r for r in results if r.get("tool_call_id", call_id) == call_id][:1]
            if not its and len(results) == 1 == len(calls):
                its = results
            made += its
            results = [r for r in results if r not in its]
        made += results
    return made
