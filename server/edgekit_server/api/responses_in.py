"""A Responses body as a chat request: items to messages, flat tools and text.format to chat's.

Pure. What a text model cannot be told (images, files, calls of tools that run at the vendor) is a
400 that names the item; in a tool's result, a note to the model. Left out are reasoning without
text, and `web_search_call` items, which hold no words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue as Json

from ..errors import RequestError
from .responses_schema import ResponsesRequest, TextFormat
from .responses_store import Item
from .responses_tools import Toolbox, choice_of, toolbox_of
from .schema import ChatRequest, SamplingFields

Message = dict[str, Json]

_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")
_UNSEEN = ("input_image", "input_file")
_ROLES = ("user", "assistant", "system", "developer")
_OWN = {"max_tokens", "n", "stream_options", "n_drafts"}
"""Sampling fields whose value or name differs in chat."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A request as chat knows it. `shown`: the functions that the model sees."""

    chat: ChatRequest
    shown: Toolbox
    _params: Mapping[str, str]

    def in_own_words(self, error: RequestError) -> RequestError:
        """Return an error about a chat request as one about the body that the client sent."""
        param = error.param
        own = self._params.get(param) if param is not None else None
        if param is None or own is None:
            return error
        return RequestError(
            error.message.replace(param, own) if param != "messages" else error.message,
            status=error.status,
            type=error.type,
            code=error.code,
            param=own,
            retry_after_s=error.retry_after_s,
        )


def items_of(given: str | Sequence[Json], find: Callable[[str], Item | None]) -> list[Item]:
    """Return the request's items, references looked up by `find`; RequestError for a lost one."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    items: list[Item] = []
    for at, item in enumerate(given):
        if not isinstance(item, dict):
            raise RequestError(
                f"input[{at}] is not an object", code="invalid_value", param=f"input[{at}]"
            )
        if item.get("type") != "item_reference" and set(item) != {"id"}:
            items.append(item)
            continue
        item_id = item.get("id")
        found = find(item_id) if isinstance(item_id, str) else None
        if found is None:
            raise RequestError(
                f"input[{at}]: Item with id {item_id!r} not found. Send the item itself.",
                code="item_not_found",
                param=f"input[{at}].id",
            )
        items.append(found)
    return items


def translate(body: ResponsesRequest, before: Sequence[Item], items: Sequence[Item]) -> Translated:
    """Return the chat request. `before`: the conversation that `previous_response_id` names."""
    _refuse_what_cannot_be(body)
    box, choice = choice_of(body.tool_choice, toolbox_of(body.tools))
    messages = [*messages_of(before, box), *messages_of(items, box)]
    if not messages:
        raise RequestError("input is empty", code="empty_input", param="input")
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    chat: dict[str, object] = {
        name: getattr(body, name) for name in SamplingFields.model_fields if name not in _OWN
    }
    chat |= {
        "speculative.n_max": body.n_drafts,
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens or body.max_tokens,
        "tools": [tool.as_chat for tool in box.tools] or None,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _format(body.text.format if body.text else None),
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs if body.logprobs else None,
    }
    params = {
        "messages": "input",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
        "response_format.json_schema.schema": "text.format.schema",
    }
    for at, tool in enumerate(box.tools):
        params[f"tools[{at}].function"] = tool.where
        params[f"tools[{at}].function.parameters"] = f"{tool.where}.parameters"
    return Translated(ChatRequest.model_validate(chat), box, params)


def messages_of(items: Sequence[Item], box: Toolbox) -> list[Message]:
    """Return the messages of items; a call joins the assistant's turn before it."""
    messages: list[Message] = []
    thought = ""
    for at, item in enumerate(items):
        where = f"input[{at}]"
        kind = item.get("type") or ("message" if "role" in item else None)
        match kind:
            case "message":
                message = _message(item, where)
            case "function_call" | "custom_tool_call":
                message = {"role": "assistant", "content": ""}
                if messages and messages[-1]["role"] == "assistant" and not thought:
                    message = messages.pop()
                calls = message.get("tool_calls")
                call = _call(item, box, where)
                message["tool_calls"] = [*(calls if isinstance(calls, list) else []), call]
            case "function_call_output" | "custom_tool_call_output":
                call_id = _string(item, "call_id", where)
                output = _text(item.get("output"), f"{where}.output", result=True)
                message = {"role": "tool", "tool_call_id": call_id, "content": output}
            case "reasoning":
                thought = "\n\n".join(filter(None, (thought, _thought(item, where))))
                continue
            case "web_search_call":
                continue
            case _:
                raise RequestError(
                    f"{where} is of type {kind!r}; this server takes message, function_call, "
                    "function_call_output, custom_tool_call, custom_tool_call_output, reasoning "
                    "and item_reference",
                    code="unsupported_item",
                    param=f"{where}.type",
                )
        if thought and message["role"] == "assistant":
            message["reasoning_content"] = thought
        thought = ""
        messages.append(message)
    return messages


def _message(item: Item, where: str) -> Message:
    role = item.get("role")
    if role not in _ROLES:
        raise RequestError(
            f"{where}.role is {role!r}; use user, assistant, system or developer",
            code="invalid_role",
            param=f"{where}.role",
        )
    return {"role": role, "content": _text(item.get("content"), f"{where}.content")}


def _call(item: Item, box: Toolbox, where: str) -> Json:
    name, namespace = _string(item, "name", where), item.get("namespace")
    shown = box.shown(name, namespace if isinstance(namespace, str) else None)
    if item["type"] == "custom_tool_call":
        arguments = json.dumps({"input": item.get("input")}, ensure_ascii=False)
    else:
        given = item.get("arguments")
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return {
        "id": _string(item, "call_id", where),
        "type": "function",
        "function": {"name": shown, "arguments": arguments},
    }


def _thought(item: Item, where: str) -> str:
    """Return the reasoning's text: the whole of it, else its summary, else nothing."""
    for key in ("content", "summary"):
        if item.get(key):
            return _text(item[key], f"{where}.{key}")
    return ""


def _text(content: Json, where: str, *, result: bool = False) -> str:
    """Return the text of a string, or of an array of text parts.

    In a tool's result an image or file becomes a note to the model: it asked for it (Codex offers
    `view_image` to every model), and a 400 would come back at each later turn.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(
            f"{where} must be a string or an array of parts", code="invalid_content", param=where
        )
    texts = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        if result and kind in _UNSEEN:
            texts.append(f"[{kind}: not shown, this model takes text only]")
            continue
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise RequestError(
                f"{where}[{at}] is of type {kind!r}; this model takes text only",
                code="unsupported_content",
                param=f"{where}[{at}]",
            )
        texts.append(text)
    return "\n".join(texts)


def _string(item: Item, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise RequestError(
            f"{where}.{key} is missing", code="invalid_value", param=f"{where}.{key}"
        )
    return value


def _format(given: TextFormat | None) -> dict[str, Json] | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return {"type": "json_object"}
    if given.type != "json_schema":
        raise RequestError(
            f"text.format.type is {given.type!r}; use text, json_object or json_schema",
            code="invalid_value",
            param="text.format.type",
        )
    return {"type": "json_schema", "json_schema": {"schema": given.schema_}}


def _refuse_what_cannot_be(body: ResponsesRequest) -> None:
    why = {
        "background": "nothing runs on when the connection is closed; use stream",
        "conversation": "conversations are not kept; use previous_response_id or send all items",
        "prompt": "there are no stored prompts; use instructions and input",
    }
    for name, reason in why.items():
        if getattr(body, name):
            raise _unsupported(name, reason)
    if body.n is not None and body.n > 1:
        raise _unsupported("n", "one answer a request")


def _unsupported(param: str, why: str) -> RequestError:
    return RequestError(
        f"{param} is not supported: {why}", code="unsupported_parameter", param=param
    )
