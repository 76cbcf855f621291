"""Anthropic's dialect: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..errors import RequestError, ServerError
from .body import body_document, read_model, while_connected
from .conversation import Conversation, begin, prompt_of
from .deadline import within
from .failures import anthropic_body
from .messages_body import CountTokensRequest, MessagesRequest
from .messages_in import check_last, in_own_words, to_chat
from .messages_out import Data, Head, Writer, stop_data, whole
from .params import with_bos
from .sse import EventStream, event

routes = APIRouter()

PING: dict[str, object] = {"type": "ping"}

MOST_COUNTING = 8
"""Prompts in the engine's counting lane at a time: agents ask for two dozen counts at once, more
than the lane lets wait."""


@routes.post("/v1/messages", openapi_extra=body_document(MessagesRequest))
async def messages(request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    body = await read_model(request, MessagesRequest)
    check_last(body)
    try:
        conversation = await begin(request, to_chat(body))
    except RequestError as error:
        raise in_own_words(error, body) from error
    hidden = body.thinking is not None and body.thinking.display == "omitted"
    head = Head(f"msg_{uuid.uuid4().hex}", conversation.model.id, hidden)
    if body.stream:
        events = _stream(conversation, Writer(head), request.app.state.config.keepalive_s)
        return EventStream(events, conversation.close)
    results = await conversation.whole(request)
    return JSONResponse(whole(head, results[0], _stop(conversation), conversation.usage()))


@routes.post("/v1/messages/count_tokens", openapi_extra=body_document(CountTokensRequest))
async def count_tokens(request: Request) -> Response:
    """Return how many tokens the prompt of the same request to /v1/messages has."""
    body = await read_model(request, CountTokensRequest)

    async def count() -> int:
        prompt = await prompt_of(request, to_chat(body))
        pieces = with_bos(prompt.rendered.pieces, prompt.model.hello)
        async with _counting(request):
            return len(await prompt.model.client.tokenize(pieces, param="messages"))

    try:
        n_tokens = await while_connected(request, within(request, count()))
    except RequestError as error:
        raise in_own_words(error, body) from error
    return JSONResponse({"input_tokens": n_tokens})


def _counting(request: Request) -> asyncio.Semaphore:
    state = request.app.state
    if not hasattr(state, "counting"):
        state.counting = asyncio.Semaphore(MOST_COUNTING)
    found: asyncio.Semaphore = state.counting
    return found


async def _stream(
    conversation: Conversation, writer: Writer, keepalive_s: float
) -> AsyncGenerator[bytes, None]:
    yield _named(writer.start(sum(conversation.call.n_prompt)))
    try:
        async for step in conversation.steps(keepalive_s):
            for data in writer.events(step[1]) if step is not None else [PING]:
                yield _named(data)
    except ServerError as error:
        yield _named(anthropic_body(error))
        return
    for data in writer.end(_stop(conversation), conversation.usage()):
        yield _named(data)


def _stop(conversation: Conversation) -> Data:
    choice = conversation.choices[0]
    return stop_data(choice.finish, choice.parser.stopped_by)


def _named(data: Data) -> bytes:
    """Return one event with its type as its name, which is what these clients go by."""
    return f"event: {data['type']}\n".encode() + event(data)
