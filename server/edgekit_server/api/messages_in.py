"""Anthropic's body to the chat request that all dialects share. Pure.

- `system` and its blocks become the first message. A line that begins with
  `x-anthropic-billing-header:` is left out: it changes with every request, and the kept prefix
  of the prompt would be lost with it.
- A user turn's `tool_result` blocks become tool messages, before its text.
- Blocks of text in a user turn are joined by line breaks; those of an assistant turn by nothing,
  since they are one answer that calls or thoughts cut in pieces.
- Ids that this server gave out, `toolu_` and nine letters, go back to those nine letters, so that
  the prompt repeats what the model wrote.
- `thinking` goes to `reasoning_content`, out of its signature if the client never saw the text;
  `redacted_thinking` is left out, nobody here can read it.
"""

from __future__ import annotations

import re
from typing import cast

from pydantic import JsonValue as Json

from ..errors import ContextLengthError, RequestError
from .messages_body import (
    Blocks,
    CountTokensRequest,
    FormatParam,
    MessageParam,
    MessagesRequest,
    ToolChoiceParam,
    ToolParam,
)
from .messages_thoughts import thought_in
from .schema import ChatRequest

ID_PREFIX = "toolu_"
BILLING = "x-anthropic-billing-header:"
_OWN_ID = re.compile(f"{ID_PREFIX}([A-Za-z0-9]{{9}})")
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""Anthropic's levels by those that templates know; one that is not here is left to the model."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}

Message = dict[str, Json]


def to_chat(body: CountTokensRequest) -> ChatRequest:
    """Return the same request in the shared shape; RequestError names the part at fault."""
    fields: dict[str, object] = {
        "model": body.model,
        "messages": _messages(body),
        "tools": None if body.tools is None else [_tool(t, i) for i, t in enumerate(body.tools)],
    }
    if body.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(body.tool_choice)
        if body.tool_choice.disable_parallel_tool_use is not None:
            fields["parallel_tool_calls"] = not body.tool_choice.disable_parallel_tool_use
    if body.thinking is not None and body.thinking.type in ("enabled", "disabled"):
        fields["chat_template_kwargs"] = {"enable_thinking": body.thinking.type == "enabled"}
    if body.output_config is not None and body.output_config.effort in _EFFORTS:
        fields["reasoning_effort"] = _EFFORTS[body.output_config.effort]
    wanted, name = _format(body)
    if body.output_format is not None and wanted is not body.output_format:
        raise RequestError(
            f"output_format and {name} both say what the answer must match; give one of them",
            code="invalid_value",
            param="output_format",
        )
    if wanted is not None:
        fields["response_format"] = {"type": wanted.type, "schema": wanted.schema_}
    if isinstance(body, MessagesRequest):
        fields |= {
            "max_tokens": body.max_tokens,
            "stop": body.stop_sequences,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stream": body.stream,
        }
    return ChatRequest.model_validate(fields)


def check_last(body: MessagesRequest) -> None:
    """Raise for an answer that the client began itself: no template could go on with it."""
    if body.messages[-1].role == "assistant":
        where = f"messages[{len(body.messages) - 1}]"
        raise RequestError(
            f"{where}: the conversation must end with a user message; an answer that has been "
            "begun (prefill) cannot be continued",
            code="prefill_unsupported",
            param=where,
        )


def in_own_words(error: RequestError, body: CountTokensRequest) -> RequestError:
    """Return the error with the shared request's field names replaced by Anthropic's."""
    if error.param is None or isinstance(error, ContextLengthError):
        return error
    param = re.sub(r"^(tools\[\d+\])\.function(\.parameters)?", _tool_field, error.param)
    param = re.sub(r"^response_format(\.json_schema)?", _format(body)[1], param)
    if param == error.param:
        return error
    return RequestError(
        error.message.replace(error.param, param),
        status=error.status,
        type=error.type,
        code=error.code,
        param=param,
        retry_after_s=error.retry_after_s,
    )


def _tool_field(found: re.Match[str]) -> str:
    return f"{found[1]}.input_schema" if found[2] else found[1]


def _format(body: CountTokensRequest) -> tuple[FormatParam | None, str]:
    """Return what the text of the answer must match, and the name of the field that says so."""
    new = None if body.output_config is None else body.output_config.format
    return (body.output_format, "output_format") if new is None else (new, "output_config.format")


def _tool(tool: ToolParam, at: int) -> Message:
    if tool.type not in (None, "custom"):
        # Not the client's own to run. It keeps its place, so that errors count as the client does.
        return {"type": tool.type}
    if not tool.name:
        where = f"tools[{at}].name"
        raise RequestError(f"{where} is missing", code="missing_required_parameter", param=where)
    function: Message = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.input_schema is not None:
        function["parameters"] = tool.input_schema
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoiceParam) -> Json:
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if not choice.name:
        raise RequestError(
            "tool_choice.name is missing",
            code="missing_required_parameter",
            param="tool_choice.name",
        )
    return {"type": "function", "function": {"name": choice.name}}


def _messages(body: CountTokensRequest) -> list[Message]:
    messages: list[Message] = []
    system = _system(body.system or "", "system")
    if system:
        messages.append({"role": "system", "content": system})
    for at, message in enumerate(body.messages):
        messages += _message(message, f"messages[{at}]")
    return messages


def _message(message: MessageParam, where: str) -> list[Message]:
    content, place = message.content, f"{where}.content"
    if message.role == "system":
        return [{"role": "system", "content": _system(content, place)}]
    if isinstance(content, str):
        return [{"role": message.role, "content": content}]
    return _user(content, place) if message.role == "user" else [_assistant(content, place)]


def _system(content: str | Blocks, where: str) -> str:
    texts = [content] if isinstance(content, str) else _texts(content, where)
    kept = [text.partition("\n")[2] if text.startswith(BILLING) else text for text in texts]
    return "\n".join(text for text in kept if text)


def _user(blocks: Blocks, where: str) -> list[Message]:
    results: list[Message] = []
    texts: list[str] = []
    for at, block in enumerate(blocks):
        place = f"{where}[{at}]"
        if block.get("type") == "tool_result":
            results.append(
                {
                    "role": "tool",
                    "tool_call_id": _call_id(block.get("tool_use_id"), f"{place}.tool_use_id"),
                    "content": _result(block, place),
                }
            )
        else:
            texts.append(_text(block, place))
    said: list[Message] = [{"role": "user", "content": "\n".join(texts)}]
    return results + said if texts or not results else results


def _assistant(blocks: Blocks, where: str) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for at, block in enumerate(blocks):
        place = f"{where}[{at}]"
        match block.get("type"):
            case "tool_use":
                calls.append(_call(block, place))
            case "thinking":
                thoughts.append(_thought(block, place))
            case "redacted_thinking":
                pass
            case _:
                texts.append(_text(block, place))
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _thought(block: Message, where: str) -> str:
    text, signature = _string(block.get("thinking"), f"{where}.thinking"), block.get("signature")
    return text or (thought_in(signature) if isinstance(signature, str) else "")


def _call(block: Message, where: str) -> Json:
    name, given = block.get("name"), block.get("input", {})
    if not isinstance(name, str) or not name:
        raise _bad(f"{where}.name", "must be the name of a tool")
    if not isinstance(given, dict):
        raise _bad(f"{where}.input", "must be an object")
    return {
        "id": _call_id(block.get("id"), f"{where}.id"),
        "type": "function",
        "function": {"name": name, "arguments": given},
    }


def _call_id(given: Json, where: str) -> str:
    if not isinstance(given, str) or not given:
        raise _bad(where, "must be the id of a call")
    own = _OWN_ID.fullmatch(given)
    return own[1] if own else given


def _result(block: Message, where: str) -> str:
    """Return the text of a tool's result; that it failed is said in words, for lack of a mark."""
    content = block.get("content")
    text = "" if content is None else _joined(content, f"{where}.content")
    if block.get("is_error") is True and not text.lower().startswith("error"):
        return f"Error: {text}" if text else "Error"
    return text


def _joined(content: Json, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise _bad(where, "must be a string or an array of blocks")
    return "\n".join(_texts(cast("Blocks", content), where))


def _texts(blocks: Blocks, where: str) -> list[str]:
    return [_text(block, f"{where}[{at}]") for at, block in enumerate(blocks)]


def _text(block: Message, where: str) -> str:
    """Return the text of a block that is text by some name; RequestError names any other."""
    kind, source = block.get("type"), block.get("source")
    if kind == "text":
        return _string(block.get("text"), f"{where}.text")
    if kind == "tool_reference":  # what an agent's own search among its tools found
        return _string(block.get("tool_name"), f"{where}.tool_name")
    if kind == "search_result":
        head = [block.get("title"), source]
        found = _joined(block.get("content"), f"{where}.content")
        return "\n".join([*(part for part in head if isinstance(part, str)), found])
    if kind == "document" and isinstance(source, dict):
        if source.get("type") == "text":
            return _string(source.get("data"), f"{where}.source.data")
        if source.get("type") == "content":
            return _joined(source.get("content"), f"{where}.source.content")
    raise RequestError(
        f"{where} is of type {kind!r}; this model takes text only",
        code="unsupported_content",
        param=where,
    )


def _string(value: Json, where: str) -> str:
    if not isinstance(value, str):
        raise _bad(where, "must be a string")
    return value


def _bad(where: str, rule: str) -> RequestError:
    return RequestError(f"{where} {rule}", code="invalid_content", param=where)
