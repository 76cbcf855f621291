"""POST /v1/fim/completions: Mistral's fill-in-the-middle dialect, answers in the chat shape."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from ..call import Call
from ..chat.fim import needed_layout
from ..chat.middle import Middle
from ..chat.parser import Event, Text
from ..errors import ServerError
from ..router import Model
from .body import body_document, read_model, while_connected
from .choice import Choice, follow, usage_of
from .deadline import deadline_of
from .failures import error_body
from .fim_prompt import fim_prompt
from .lora import lora_of
from .newest import newest
from .params import check_max_tokens, generates, sampling_of, with_bos
from .schema import Int64, SamplingFields
from .sse import DONE, KEEP_ALIVE, EventStream, event

routes = APIRouter()


class FimRequest(SamplingFields):
    prompt: str
    suffix: str | None = None
    random_seed: Int64 | None = None
    """Mistral's name for `seed`, which it beats."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """Accepted, without effect: a middle ends where the model ends it."""


@dataclass(frozen=True, slots=True)
class Filling:
    """A request that the engine accepted."""

    body: FimRequest
    model: Model
    call: Call
    choices: list[Choice]
    id: str
    created: int

    def head(self, kind: str) -> dict[str, object]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.id,
        }

    def usage(self) -> dict[str, object]:
        return usage_of(self.call, self.choices, len(self.choices)).as_dict()


@routes.post("/v1/fim/completions", openapi_extra=body_document(FimRequest))
async def fim_completions(request: Request) -> Response:
    """Fill in between `prompt` and `suffix`."""
    body = await read_model(request, FimRequest)
    filling, _ = await newest(request, _begin(request, body), lambda begun: begun.call)
    if body.stream:
        return EventStream(_stream(filling, request), filling.call.cancel)
    texts = [""] * len(filling.choices)

    async def collect() -> None:
        async for step in follow(filling.call, filling.choices, request.app.state.metrics):
            if step is not None:
                texts[step[0].index] += _text(step[1])

    try:
        await while_connected(request, collect())
    finally:
        filling.call.cancel()
    filling.call.check()
    choices = [
        {
            "index": choice.index,
            "message": {"role": "assistant", "content": texts[choice.index], "tool_calls": None},
            "finish_reason": choice.finish,
        }
        for choice in filling.choices
    ]
    head = filling.head("chat.completion")
    return JSONResponse({**head, "choices": choices, "usage": filling.usage()})


async def _begin(request: Request, body: FimRequest) -> Filling:
    model: Model = await request.app.state.router.model(body.model, role="fim")
    layout = needed_layout(model.hello.fim)
    limit = check_max_tokens(body.max_tokens, "max_tokens")
    if body.random_seed is not None:
        body = body.model_copy(update={"seed": body.random_seed})
    pieces = with_bos(layout.pieces(body.prompt, body.suffix or ""), model.hello)
    prompt = await fim_prompt(model, pieces)
    lora = lora_of(body.lora, model.hello)
    sampling = sampling_of(body, model.hello, None)
    requests = [
        replace(generate, whole=False)
        for generate in generates(prompt, body, sampling, limit, None, lora)
    ]
    call = await model.client.generate(requests, param="prompt", deadline_s=deadline_of(request))
    choices = [Choice(i, Middle(stop=body.stops)) for i in range(len(requests))]
    return Filling(body, model, call, choices, f"cmpl-{uuid.uuid4().hex}", int(time.time()))


async def _stream(filling: Filling, request: Request) -> AsyncGenerator[bytes, None]:
    """Chunks in the chat shape; the last one says how it ended and carries the usage."""
    state = request.app.state
    head = filling.head("chat.completion.chunk")
    running = len(filling.choices)

    def chunk(choice: Choice, delta: dict[str, object], *, last: bool = False) -> bytes:
        finish = choice.finish if last else None
        item = {"index": choice.index, "delta": delta, "finish_reason": finish}
        usage = {"usage": filling.usage()} if last and not running else {}
        return event({**head, "choices": [item], **usage})

    try:
        for choice in filling.choices:
            yield chunk(choice, {"role": "assistant", "content": ""})
        async for step in follow(
            filling.call, filling.choices, state.metrics, state.config.keepalive_s
        ):
            if step is None:
                yield KEEP_ALIVE
                continue
            choice, text = step[0], _text(step[1])
            if text:
                yield chunk(choice, {"content": text})
            if choice.finish is not None:
                running -= 1
                yield chunk(choice, {"content": ""}, last=True)
    except ServerError as error:
        yield event(error_body(error))
        return
    yield DONE


def _text(events: list[Event]) -> str:
    return "".join(item.text for item in events if isinstance(item, Text))
