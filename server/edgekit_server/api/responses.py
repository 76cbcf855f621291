"""OpenAI's Responses dialect: POST /v1/responses and what belongs to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import cast

from fastapi import APIRouter, Request
from pydantic import JsonValue as Json
from starlette.responses import JSONResponse, Response

from ..errors import RequestError, ServerError
from .body import body_document, read_model
from .conversation import Conversation, begin
from .responses_head import head_of
from .responses_in import Translated, items_of, translate
from .responses_out import Typed, Writer, written_out
from .responses_schema import ResponsesRequest
from .responses_store import Item, ResponseStore, Stored
from .sse import EventStream

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
    writer = Writer(head_of(body, translated.shown, conversation.model.id), translated.shown)

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


def _finish(conversation: Conversation, writer: Writer) -> list[Typed]:
    cut = conversation.choices[0].finish == "length"
    return writer.finish(conversation.usage(), cut=cut)


async def _stream(
    conversation: Conversation, writer: Writer, keep: Keep, keepalive_s: float
) -> AsyncGenerator[bytes, None]:
    yield written_out(writer.begin())
    try:
        async for step in conversation.steps(keepalive_s):
            if step is None:
                yield written_out([writer.still()])
                continue
            choice, events = step
            logprobs, choice.logprobs = choice.logprobs, []
            written = writer.take(events, logprobs)
            if written:
                yield written_out(written)
    except ServerError as error:
        yield written_out(writer.fail(error))
        return
    last = _finish(conversation, writer)
    response = last[-1]["response"]
    assert isinstance(response, dict)
    # Before the client knows the id: it may go on from it at once.
    keep(response)
    yield written_out(last)
