"""POST /v1/chat/completions: OpenAI's chat dialect."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..chat.parser import Event, ReasoningText, Text, ToolCall
from ..engine.wire import TopToken
from ..errors import ServerError
from .body import body_document, read_model
from .choice import Choice
from .conversation import Conversation, begin
from .failures import error_body
from .schema import ChatRequest
from .sse import DONE, KEEP_ALIVE, EventStream, event

routes = APIRouter()


@routes.post("/v1/chat/completions", openapi_extra=body_document(ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    body = await read_model(request, ChatRequest)
    conversation = await begin(request, body)
    if body.stream:
        events = _stream(conversation, request.app.state.config.keepalive_s)
        return EventStream(events, conversation.close)
    results = await conversation.whole(request)
    return JSONResponse(
        {
            **_head(conversation, "chat.completion"),
            "choices": [
                {
                    "index": c.index,
                    "message": _message(results[c.index]),
                    "logprobs": _logprobs(c.logprobs) if body.logprobs else None,
                    "finish_reason": c.finish,
                }
                for c in conversation.choices
            ],
            "usage": conversation.usage().as_dict(),
        }
    )


def _head(conversation: Conversation, kind: str) -> dict[str, object]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": conversation.model.id,
    }


def _message(events: Sequence[Event]) -> dict[str, object]:
    text = "".join(e.text for e in events if isinstance(e, Text))
    reasoning = "".join(e.text for e in events if isinstance(e, ReasoningText))
    calls = [
        {"id": e.id, "type": "function", "function": {"name": e.name, "arguments": e.arguments}}
        for e in events
        if isinstance(e, ToolCall)
    ]
    message: dict[str, object] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    return message


async def _stream(conversation: Conversation, keepalive_s: float) -> AsyncGenerator[bytes, None]:
    body = conversation.body
    head = _head(conversation, "chat.completion.chunk")

    def chunk(choice: Choice, delta: dict[str, object], finish: str | None = None) -> bytes:
        item: dict[str, object] = {"index": choice.index, "delta": delta, "finish_reason": finish}
        if body.logprobs and choice.logprobs and ("content" in delta or finish):
            item["logprobs"] = _logprobs(choice.logprobs)
            choice.logprobs = []
        return event({**head, "choices": [item]})

    begun: set[int] = set()
    try:
        async for step in conversation.steps(keepalive_s):
            if step is None:
                yield KEEP_ALIVE
                continue
            choice, events = step
            if choice.index not in begun:
                begun.add(choice.index)
                item = {
                    "index": choice.index,
                    "delta": {"role": "assistant", "content": ""},
                    "finish_reason": None,
                }
                yield event({**head, "choices": [item]})
            for delta in _deltas(events):
                yield chunk(choice, delta)
            if choice.finish is not None:
                yield chunk(choice, {}, choice.finish)
    except ServerError as error:
        yield event(error_body(error))
        return
    if body.include_usage:
        usage = conversation.usage().as_dict()
        yield event({**head, "choices": [], "usage": usage})
    yield DONE


def _deltas(events: Sequence[Event]) -> list[dict[str, object]]:
    """Identity in a call's first delta only, arguments in the next: readers join what repeats."""
    deltas: list[dict[str, object]] = []
    for item in events:
        match item:
            case Text(text):
                deltas.append({"content": text})
            case ReasoningText(text):
                deltas.append({"reasoning_content": text})
            case ToolCall(index, call_id, name, arguments):
                first = {
                    "index": index,
                    "id": call_id,
                    "type": "function",
                    "function": {"name": name, "arguments": ""},
                }
                more = {"index": index, "function": {"arguments": arguments}}
                deltas += [{"tool_calls": [first]}, {"tool_calls": [more]}]
    return deltas


def _logprobs(entries: Sequence[tuple[TopToken, list[TopToken]]]) -> dict[str, object]:
    def said(token: TopToken) -> dict[str, object]:
        return {
            "token": token.text.decode("utf-8", "replace"),
            "logprob": token.logprob,
            "bytes": list(token.text),
        }

    return {
        "content": [{**said(t), "top_logprobs": [said(top) for top in tops]} for t, tops in entries]
    }
