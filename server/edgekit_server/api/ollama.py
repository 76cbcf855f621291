"""Ollama's dialect: /api/*, for editors and tools that look for an Ollama server.

As there, chat and generate stream unless `stream` is false, and an empty conversation or prompt
only loads the model. Unlike there, nothing is ever cut (`num_ctx`, `num_keep` and `truncate` set
no limit here: what is too long is an error), no template from a request is rendered, and what
loads and unloads models is the server's own settings, not `keep_alive`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..chat.family import PLAIN
from ..chat.fim import fim_pieces
from ..chat.middle import Middle
from ..chat.parser import Parser
from ..engine.wire import Piece
from ..errors import RequestError
from ..router import Model, Router, Served
from .body import body_document, read_model, while_connected
from .choice import Choice
from .constraints import grammar_of
from .conversation import Conversation, begin
from .deadline import deadline_of
from .embeddings import EmbeddingRequest, embed, floats
from .newest import newest
from .ollama_facts import Facts, thinks
from .ollama_lines import Answer, Clock, Fields, LineStream, line
from .ollama_schema import (
    Asking,
    ChatBody,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    ShowBody,
    no_images,
    request_of,
    spellings,
    turns,
)
from .params import generates, sampling_of, with_bos

routes = APIRouter()

VERSION = "0.12.11"
"""The Ollama release whose dialect this is: it has thinking levels, call ids and logprobs. VS Code
wants 0.6.4 at least."""


@routes.head("/api/version", include_in_schema=False)
@routes.get("/api/version")
async def version() -> dict[str, str]:
    """Say how much of Ollama's dialect is spoken here."""
    return {"version": VERSION}


@routes.head("/api/tags", include_in_schema=False)
@routes.get("/api/tags")
async def tags(request: Request) -> dict[str, object]:
    """List the models."""
    return {"models": [facts_of(served).tag() for served in request.app.state.router.served]}


@routes.get("/api/ps")
async def ps(request: Request) -> dict[str, object]:
    """List the models that are loaded."""
    idle_s = request.app.state.config.idle_unload_s
    return {
        "models": [
            facts_of(served).running(served.hello, _stays_s(served, idle_s))
            for served in request.app.state.router.served
            if served.hello is not None and served.status == "loaded"
        ]
    }


@routes.post("/api/show", openapi_extra=body_document(ShowBody))
async def show(request: Request) -> dict[str, object]:
    """Describe a model. Loads none: one that was never loaded has only its name and its roles."""
    body = await read_model(request, ShowBody)
    wanted = body.model or body.name
    if not wanted:
        raise RequestError("model is required", code="missing_required_parameter", param="model")
    return facts_of(find(request.app.state.router, wanted)).show()


@routes.post("/api/chat", openapi_extra=body_document(ChatBody))
async def chat(request: Request) -> Response:
    """Answer a conversation."""
    clock = Clock()
    body = await read_model(request, ChatBody)
    answer = Answer(body.model, True, clock)
    messages = turns(body.messages or [])
    if not messages:
        return await _load(request, body, answer)
    model = await _loaded(request, body.model, clock)
    _check_think(body, model)
    asked = request_of(body, model.id, messages, body.tools)
    return await _respond(request, body, answer, await begin(request, asked))


@routes.post("/api/generate", openapi_extra=body_document(GenerateBody))
async def generate(request: Request) -> Response:
    """Answer a prompt, continue raw text, or fill in between `prompt` and `suffix`."""
    clock = Clock()
    body = await read_model(request, GenerateBody)
    answer = Answer(body.model, False, clock)
    _check_generate(body)
    prompt = body.prompt or ""
    if not prompt and not body.suffix:
        return await _load(request, body, answer)
    model = await _loaded(request, body.model, clock)
    _check_think(body, model)
    if body.suffix:
        pieces = fim_pieces(prompt, body.suffix, model.hello.fim)
        filling = _continue(request, body, model, pieces, _middle)
        conversation, _ = await newest(request, filling, lambda begun: begun.call)
    elif body.raw or (model.template is None and not body.system):
        continuing = _continue(request, body, model, [(prompt, True)], _plain)
        conversation = await while_connected(request, continuing)
    else:
        said = [("system", body.system), ("user", prompt)]
        turned = request_of(body, model.id, [{"role": r, "content": t} for r, t in said if t])
        conversation = await begin(request, turned)
    return await _respond(request, body, answer, conversation)


@routes.post("/api/embed", openapi_extra=body_document(EmbedBody))
async def embed_texts(request: Request) -> Response:
    """Return a vector of length 1 for each text."""
    clock = Clock()
    body = await read_model(request, EmbedBody)
    model = await _loaded(request, body.model, clock)
    answer: Fields = {"model": body.model, "embeddings": []}
    if not body.input:
        return _json(answer)
    asked = EmbeddingRequest(input=body.input, model=model.id, dimensions=body.dimensions)
    _, reply = await embed(request, asked)
    return _json(
        answer
        | {
            "embeddings": [floats(vector) for vector in reply.vectors],
            "total_duration": time.monotonic_ns() - clock.began,
            "load_duration": clock.loaded - clock.began,
            "prompt_eval_count": sum(reply.n_tokens),
        }
    )


@routes.post("/api/embeddings", openapi_extra=body_document(EmbeddingsBody))
async def embed_text(request: Request) -> Response:
    """Return the vector of one text as the model makes it: the older form of /api/embed."""
    body = await read_model(request, EmbeddingsBody)
    model = await _loaded(request, body.model, Clock())
    if not body.prompt:
        return _json({"embedding": []})
    asked = EmbeddingRequest(input=body.prompt, model=model.id, embd_normalize=-1)
    _, reply = await embed(request, asked)
    return _json({"embedding": floats(reply.vectors[0])})


def facts_of(served: Served) -> Facts:
    """Return what there is to say of a model."""
    config = served.config
    return Facts(served.id, config.engine.model_path, served.hello, config.roles)


def find(router: Router, name: str) -> Served:
    """Return the model by any of its names, with or without `:latest`; RequestError 404."""
    for spelling in spellings(name):
        try:
            return router.find(spelling)
        except RequestError as error:
            if error.status != 404:
                raise
    raise not_found(name)


def not_found(name: str) -> RequestError:
    """Return the 404 in Ollama's words, which clients look for."""
    return RequestError(
        f"model '{name}' not found", status=404, code="model_not_found", param="model"
    )


async def _loaded(request: Request, name: str, clock: Clock) -> Model:
    """Return a model that is loaded. RequestError 404 or, while it loads, 503."""
    router: Router = request.app.state.router
    model = await while_connected(request, router.model(find(router, name).id))
    clock.loaded = time.monotonic_ns()
    return model


async def _load(request: Request, body: Asking, answer: Answer) -> Response:
    """Answer a request for no text: the model gets loaded. Where the client lets go of it instead,
    nothing happens, and the answer says how things are."""
    reason = "load"
    if body.lets_go:
        served = find(request.app.state.router, body.model)
        reason = "load" if served.resident else "unload"
    else:
        await _loaded(request, body.model, answer.clock)
    return _json(answer.empty(reason))


async def _continue(
    request: Request,
    body: Asking,
    model: Model,
    pieces: list[Piece],
    parser: Callable[[Sequence[str]], Parser],
) -> Conversation:
    """Hand text to the engine as it is; returns when it accepted the prompt."""
    asked = request_of(body, model.id, [])
    n_logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    requests = generates(
        with_bos(pieces, model.hello),
        asked,
        sampling_of(asked, model.hello, n_logprobs),
        asked.max_tokens,
        grammar_of(asked),
    )
    waits_s = deadline_of(request)
    call = await model.client.generate(requests, param="prompt", deadline_s=waits_s)
    choice = Choice(0, parser(asked.stops))
    return Conversation(asked, model, call, [choice], request.app.state.metrics)


def _plain(stops: Sequence[str]) -> Parser:
    return Parser(PLAIN, stop=stops, tools=False)


def _middle(stops: Sequence[str]) -> Parser:
    return Middle(stop=stops)


async def _respond(
    request: Request, body: Asking, answer: Answer, conversation: Conversation
) -> Response:
    answer.clock.accepted = time.monotonic_ns()
    if body.streams:
        lines = answer.lines(conversation, request.app.state.config.keepalive_s)
        return LineStream(lines, conversation.close)
    found = await answer.whole(conversation, request)
    conversation.call.check()
    return _json(found)


def _stays_s(served: Served, idle_s: float | None) -> float | None:
    """Return how long a model stays loaded if nobody asks for it."""
    if idle_s is None or served.config.pinned:
        return None
    return idle_s if served.busy else max(0.0, served.used_at + idle_s - time.monotonic())


def _check_think(body: Asking, model: Model) -> None:
    if body.think and not thinks(model.spec, model.hello):
        raise RequestError(
            f'"{body.model}" does not support thinking', code="unsupported_parameter", param="think"
        )


def _check_generate(body: GenerateBody) -> None:
    """Raise RequestError for fields that cannot be served, or not together."""
    no_images(body.images, "images")
    if body.template:
        raise RequestError(
            "template: this server renders no templates from requests; send the finished text "
            "with raw set to true",
            code="unsupported_parameter",
            param="template",
        )
    if body.system and (body.raw or body.suffix):
        other = "raw" if body.raw else "suffix"
        raise RequestError(
            f"system has no place in a prompt with {other}; leave one out",
            code="invalid_value",
            param="system",
        )


def _json(fields: Fields) -> Response:
    """Return one object. Not Starlette's way: a lone surrogate must not break it."""
    return Response(line(fields), media_type="application/json")
