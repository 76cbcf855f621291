"""POST /v1/chat/completions: OpenAI's chat dialect."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..call import Call
from ..chat.normalise import normalise
from ..chat.parser import Event, Parser, ReasoningText, Text, ToolCall, merge
from ..chat.template import Rendered
from ..engine.wire import TopToken
from ..errors import RequestError, ServerError
from ..router import Model
from .body import body_document, read_model, while_connected
from .choice import Choice, follow, usage_of
from .constraints import after_reasoning, grammar_of, in_reasoning
from .deadline import deadline_of
from .failures import error_body
from .lora import lora_of
from .params import check_max_tokens, generates, sampling_of, with_bos
from .schema import ChatRequest
from .sse import DONE, KEEP_ALIVE, EventStream, event
from .tools import grammar_with, offered

routes = APIRouter()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A validated request with its prompt."""

    body: ChatRequest
    model: Model
    rendered: Rendered
    tools: bool
    id: str
    created: int


@routes.post("/v1/chat/completions", openapi_extra=body_document(ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    body = await read_model(request, ChatRequest)
    prepared, call = await while_connected(request, _begin(request, body))
    choices = [_choice(prepared, i) for i in range(body.n or 1)]
    state = request.app.state
    if body.stream:
        events = _stream(prepared, call, choices, request)
        return EventStream(events, call.cancel)
    try:
        results: list[list[Event]] = [[] for _ in choices]

        async def collect() -> None:
            async for step in follow(call, choices, state.metrics):
                if step is not None:
                    results[step[0].index] += step[1]

        await while_connected(request, collect())
    finally:
        call.cancel()
    return JSONResponse(
        {
            "id": prepared.id,
            "object": "chat.completion",
            "created": prepared.created,
            "model": prepared.model.id,
            "choices": [
                {
                    "index": c.index,
                    "message": _message(merge(results[c.index])),
                    "logprobs": _logprobs(c.logprobs) if body.logprobs else None,
                    "finish_reason": c.finish,
                }
                for c in choices
            ],
            "usage": usage_of(call, choices, len(choices)).as_dict(),
        }
    )


async def _begin(request: Request, body: ChatRequest) -> tuple[Prepared, Call]:
    """Validate, render, and hand to the engine; returns when it accepted the prompt."""
    model = await request.app.state.router.model(body.model)
    answer = grammar_of(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError(
            "top_logprobs needs logprobs to be true", code="invalid_value", param="top_logprobs"
        )
    if model.template is None:
        raise RequestError(
            "this model has no chat template; use /v1/completions", code="no_chat_template"
        )
    tools = offered(body)
    grammar = grammar_with(answer, body, tools, model.spec, model.hello)
    limit_name = "max_completion_tokens" if body.max_completion_tokens is not None else "max_tokens"
    limit = check_max_tokens(
        body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        limit_name,
    )
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = sampling_of(body, model.hello, n_logprobs)
    thinking = body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs else None
    if thinking is None and body.reasoning_effort == "none":
        thinking = False
    render = partial(model.template.render, enable_thinking=thinking)
    rendered = await asyncio.to_thread(
        lambda: render(normalise(body.messages), [tool.shown for tool in tools])
    )
    if grammar is not None and not grammar.lenient:
        grammar = after_reasoning(grammar, model.spec, rendered, model.hello, thinking=thinking)
    prompt = with_bos(rendered.pieces, model.hello)
    lora = lora_of(body.lora, model.hello)
    requests = generates(prompt, body, sampling, limit, grammar, lora, tools=bool(tools))
    waits_s = deadline_of(request)
    call = await model.client.generate(requests, param="messages", deadline_s=waits_s)
    made_id = f"chatcmpl-{uuid.uuid4().hex}"
    return Prepared(body, model, rendered, bool(tools), made_id, int(time.time())), call


def _choice(prepared: Prepared, index: int) -> Choice:
    spec = prepared.model.spec
    parser = Parser(
        spec,
        stop=prepared.body.stops,
        tools=prepared.tools,
        max_calls=1 if prepared.body.parallel_tool_calls is False else None,
        in_reasoning=in_reasoning(spec, prepared.rendered),
    )
    return Choice(index, parser)


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


async def _stream(
    prepared: Prepared, call: Call, choices: Sequence[Choice], request: Request
) -> AsyncGenerator[bytes, None]:
    body, state = prepared.body, request.app.state
    head: dict[str, object] = {
        "id": prepared.id,
        "object": "chat.completion.chunk",
        "created": prepared.created,
        "model": prepared.model.id,
    }

    def chunk(choice: Choice, delta: dict[str, object], finish: str | None = None) -> bytes:
        item: dict[str, object] = {"index": choice.index, "delta": delta, "finish_reason": finish}
        if body.logprobs and choice.logprobs and ("content" in delta or finish):
            item["logprobs"] = _logprobs(choice.logprobs)
            choice.logprobs = []
        return event({**head, "choices": [item]})

    begun: set[int] = set()
    try:
        async for step in follow(call, choices, state.metrics, state.config.keepalive_s):
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
        usage = usage_of(call, choices, len(choices)).as_dict()
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
