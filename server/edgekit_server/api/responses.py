"""OpenAI's Responses dialect: POST /v1/responses and what belongs to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import cast

from fastapi import APIRouter, Request
from pydantic import JsonValue as Json
from starlette.responses import JSONResponse, Response

from ..engine.wire import Sampling
from ..errors import RequestError, ServerError
from .body import body_document, read_model
from .conversation import Conversation, begin
from .responses_in import Translated, items_of, translate
from .responses_out import Typed, Writer, new_id
from .responses_schema import ResponsesRequest
from .responses_store import Item, ResponseStore, Stored
from .sse import EventStream, event

routes = APIRouter()

Keep = Callable[[dict[str, Json]], None]


@routes.post("/v1/responses", openapi_extra=body_document(ResponsesRequest))
async def create_response(request: Request) -> Response:
    """Answer, whole or as a stream of typed events."""
    body = await read_model(request, ResponsesRequest)
    store: ResponseStore = request.app.state.responses
    items, before, translated = await _read(body, store)
    try:
        conversation = await begin(request, translated.chat)
    except RequestError as error:
        raise translated.in_own_words(error) from None
    writer = Writer(_head(body, translated, conversation), translated.shown)

    def keep(response: dict[str, Json]) -> None:
        if body.store is not False:
            store.put(response, items, before)

    if body.stream:
        events = _stream(conversation, writer, keep, request.app.state.config.keepalive_s)
        return EventStream(events, conversation.close)
    results = await conversation.whole(request)
    writer.take(results[0], conversation.choices[0].logprobs)
    response = _finish(conversation, writer)[-1]["response"]
    assert isinstance(response, dict)
    keep(response)
    return JSONResponse(response)


@routes.get("/v1/responses/{response_id}")
async def get_response(request: Request, response_id: str) -> Response:
    """Return an answer that is still kept, whole."""
    stored = _store(request).get(response_id)
    if request.query_params.get("stream", "").lower() in ("true", "1"):
        raise RequestError(
            "a stored response is returned whole; leave out stream",
            code="unsupported_parameter",
            param="stream",
        )
    return Response(stored.response, media_type="application/json")


@routes.delete("/v1/responses/{response_id}")
async def delete_response(request: Request, response_id: str) -> dict[str, object]:
    """Forget an answer."""
    _store(request).delete(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


def _store(request: Request) -> ResponseStore:
    return cast("ResponseStore", request.app.state.responses)


async def _read(
    body: ResponsesRequest, store: ResponseStore
) -> tuple[list[Item], Stored | None, Translated]:
    """Return the request's items, the answer that it goes on from, and both as a chat request."""
    before = store.previous(body.previous_response_id) if body.previous_response_id else None
    items = items_of(body.input, store.item)
    earlier = await asyncio.to_thread(before.items) if before is not None else []
    return items, before, translate(body, earlier, items)


def _head(
    body: ResponsesRequest, translated: Translated, conversation: Conversation
) -> dict[str, Json]:
    """Return the response object without what the answer adds: true values, not the asked ones."""
    default = Sampling()
    verbosity = body.text.verbosity if body.text else None
    return {
        "id": new_id("response"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens or body.max_tokens,
        "max_tool_calls": None,
        "metadata": cast("Json", body.metadata or {}),
        "model": conversation.model.id,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": body.reasoning.effort if body.reasoning else None,
            "summary": None,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": default.temperature if body.temperature is None else body.temperature,
        "text": {"format": _format(body), "verbosity": verbosity or "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": translated.shown.echo(),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": default.top_p if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _format(body: ResponsesRequest) -> Json:
    given = body.text.format if body.text else None
    if given is None or given.type != "json_schema":
        return {"type": given.type if given else "text"}
    said = given.model_dump(exclude_none=True, exclude={"schema_"})
    return {**said, "schema": given.schema_}


def _finish(conversation: Conversation, writer: Writer) -> list[Typed]:
    cut = conversation.choices[0].finish == "length"
    return writer.finish(conversation.usage(), cut=cut)


async def _stream(
    conversation: Conversation, writer: Writer, keep: Keep, keepalive_s: float
) -> AsyncGenerator[bytes, None]:
    yield _written(writer.begin())
    try:
        async for step in conversation.steps(keepalive_s):
            if step is None:
                yield _written([writer.still()])
                continue
            choice, events = step
            logprobs, choice.logprobs = choice.logprobs, []
            written = writer.take(events, logprobs)
            if written:
                yield _written(written)
    except ServerError as error:
        yield _written(writer.fail(error))
        return
    last = _finish(conversation, writer)
    response = last[-1]["response"]
    assert isinstance(response, dict)
    # Before the client knows the id: it may go on from it at once.
    keep(response)
    yield _written(last)


def _written(events: Iterable[Typed]) -> bytes:
    """Return events as lines; readers of this dialect want the name beside the data."""
    return b"".join(
        b"event: " + str(typed["type"]).encode() + b"\n" + event(typed) for typed in events
    )
