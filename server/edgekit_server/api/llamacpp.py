"""llama-server's own dialect: POST /infill and POST /completion."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..chat.family import PLAIN
from ..chat.fim import File, needed_layout
from ..chat.middle import Middle
from ..chat.parser import Parser
from ..engine.wire import Generate, Piece
from ..errors import ContextLengthError, RequestError, ServerError
from ..router import Model
from .body import body_document, read_model, while_connected
from .choice import Choice
from .constraints import grammar_of
from .deadline import deadline_of
from .failures import error_body
from .fim_prompt import fim_prompt
from .llamacpp_fit import Fill, Omitted, files_that_fit, omitted, prompt_with
from .llamacpp_props import routes as more_routes
from .llamacpp_reply import Job, final, part, text_of
from .llamacpp_run import Limits, Track, timed
from .llamacpp_schema import (
    InfillRequest,
    NativeCompletionRequest,
    NativePrompt,
    NativeRequest,
)
from .lora import lora_of
from .newest import newest
from .params import generates, sampling_of, with_bos
from .schema import MAX_CHOICES
from .sse import KEEP_ALIVE, EventStream, event

routes = APIRouter()
routes.include_router(more_routes)

OMITTED_HEADER = "x-edgekit-omitted"
EnginePrompt = list[Piece] | list[int]


@routes.post("/infill", openapi_extra=body_document(InfillRequest))
async def infill(request: Request) -> Response:
    """Fill in between two texts, with pieces of other files for context."""
    body = await read_model(request, InfillRequest)
    begin = _begin_infill(request, body)
    if body.warms_up:  # it is no answer that a newer request could be waiting for
        return await _answer(request, await while_connected(request, begin))
    job, _ = await newest(request, begin, lambda begun: begun.call)
    return await _answer(request, job)


@routes.post("/completion", openapi_extra=body_document(NativeCompletionRequest))
async def completion(request: Request) -> Response:
    """Continue text."""
    body = await read_model(request, NativeCompletionRequest)
    return await _answer(request, await while_connected(request, _begin(request, body)))


async def _begin_infill(request: Request, body: InfillRequest) -> Job:
    model: Model = await request.app.state.router.model(body.model, role="fim")
    layout = needed_layout(model.hello.fim)
    files = [File(file.text, file.filename or "tmp") for file in body.input_extra or []]
    fill = Fill(body.input_prefix + body.prompt, body.input_suffix, files)
    stops = [*body.stops, *(layout.stops if files else [])]

    def parser() -> Parser:
        return Middle(stop=stops, n_indent=body.n_indent or 0)

    kept = await files_that_fit(model, layout, fill, body.n_predict)
    while True:
        pieces = prompt_with(model, layout, fill, kept)
        prompt = await fim_prompt(model, pieces)
        left_out = omitted(fill, kept, model)
        try:
            job = await _start(request, body, model, [prompt], parser, left_out)
            return replace(job, prompts=[_shown(pieces)])
        except ContextLengthError:
            if not kept:
                raise
            kept -= 1


async def _begin(request: Request, body: NativeCompletionRequest) -> Job:
    model: Model = await request.app.state.router.model(body.model, role="completion")
    prompts = [await _prompt(item, model) for item in _split(body.prompt)]
    return await _start(
        request, body, model, prompts, lambda: Parser(PLAIN, stop=body.stops, tools=False)
    )


async def _start(
    request: Request,
    body: NativeRequest,
    model: Model,
    prompts: Sequence[EnginePrompt],
    parser: Callable[[], Parser],
    left_out: Omitted | None = None,
) -> Job:
    """Hand prompts to the engine. RequestError: what the client must change."""
    n_choices = 1 if body.warms_up else body.n or 1
    if len(prompts) * n_choices > MAX_CHOICES:
        raise RequestError(
            f"{len(prompts)} prompts times n_cmpl={n_choices} is more than {MAX_CHOICES} answers",
            code="invalid_value",
            param="prompt",
        )
    sampling = sampling_of(body, model.hello, body.n_probs or None)
    grammar = None if body.warms_up else grammar_of(body)
    if body.warms_up:
        sampling = replace(sampling, temperature=0.0)
    # The one token of a warm-up is never shown: drawing it is how the prompt gets computed.
    limit = 1 if body.warms_up else body.n_predict
    # A warm-up's prompt is its purpose, and clients send t_max_prompt_ms 1 with it.
    limits = Limits.of_ms(body.t_max_prompt_ms, body.t_max_predict_ms)
    limits = Limits() if body.warms_up else limits
    looked_at = limits.any or isinstance(parser(), Middle)
    fields = body.model_copy(update={"n": n_choices})
    lora = lora_of(body.lora, model.hello)
    requests: list[Generate] = [
        replace(generate, whole=generate.whole and not looked_at)
        for prompt in prompts
        for generate in generates(prompt, fields, sampling, limit, grammar, lora)
    ]
    call = await model.client.generate(requests, param="prompt", deadline_s=deadline_of(request))
    began = time.monotonic()
    tracks = [Track(began, Choice(i, parser())) for i in range(len(requests))]
    shown = [_shown(prompt) for prompt in prompts]
    return Job(body, model, call, tracks, limits, sampling, shown, n_choices, left_out)


async def _answer(request: Request, job: Job) -> Response:
    headers = {} if job.omitted is None else {OMITTED_HEADER: job.omitted.reason}
    if job.body.stream:
        stream = EventStream(_stream(job, request), job.call.cancel)
        stream.headers.update(headers)
        return stream
    texts: list[list[str]] = [[] for _ in job.tracks]

    async def collect() -> None:
        async for step in timed(job.call, job.tracks, job.limits, request.app.state.metrics):
            if step is not None:
                texts[step[0].choice.index].append(text_of(step[1]))

    try:
        await while_connected(request, collect())
    finally:
        job.call.cancel()
    job.call.check()
    found = [
        final(job, track, "".join(text)) for track, text in zip(job.tracks, texts, strict=True)
    ]
    return JSONResponse(found[0] if len(found) == 1 else found, headers=headers)


async def _stream(job: Job, request: Request) -> AsyncGenerator[bytes, None]:
    """llama-server ends such a stream with the part that says `stop`, and no [DONE]."""
    state = request.app.state
    told = [0] * len(job.tracks)
    newline = [False] * len(job.tracks)
    try:
        steps = timed(job.call, job.tracks, job.limits, state.metrics, state.config.keepalive_s)
        async for step in steps:
            if step is None:
                yield KEEP_ALIVE
                continue
            track, events = step
            index = track.choice.index
            if text_of(events) and not job.body.warms_up:
                shown = part(job, track, events, told[index])
                told[index] = len(track.tokens)
                newline[index] |= "\n" in text_of(events)
                yield event(shown)
            if track.choice.ended():
                last = final(job, track, "")
                if "has_new_line" in last:
                    last["has_new_line"] = newline[index]
                yield event(last)
    except ServerError as error:
        yield event(error_body(error))


def _split(prompt: NativePrompt) -> list[str | list[str | int]]:
    """Return one item per prompt."""
    if isinstance(prompt, str):
        return [prompt]
    texts = [item for item in prompt if isinstance(item, str)]
    lists = [list(item) for item in prompt if isinstance(item, list)]
    if lists:
        return [*lists]
    if prompt and len(texts) == len(prompt):
        return [*texts]
    return [[item for item in prompt if not isinstance(item, list)]]


async def _prompt(item: str | list[str | int], model: Model) -> EnginePrompt:
    """Return one prompt for the engine. Raw text may name control tokens; BOS goes in front of a
    prompt that begins with text."""
    if isinstance(item, str):
        return with_bos([(item, True)] if item else [], model.hello)
    wrong = next((t for t in item if isinstance(t, int) and not 0 <= t < model.hello.n_vocab), None)
    if wrong is not None or not item:
        said = "is an empty list" if wrong is None else f"{wrong} is no token id of this model"
        raise RequestError(f"prompt: {said}", code="bad_token", param="prompt")
    ids: list[int] = []
    for number, entry in enumerate(item):
        if isinstance(entry, int):
            ids.append(entry)
            continue
        pieces: list[Piece] = [(entry, True)] if entry else []
        pieces = with_bos(pieces, model.hello) if number == 0 else pieces
        ids += await model.client.tokenize(pieces, param="prompt") if pieces else []
    return ids


def _shown(prompt: EnginePrompt) -> object:
    """Return a prompt as a client may look at it."""
    if prompt and isinstance(prompt[0], int):
        return prompt
    return "".join(item[0] for item in prompt if not isinstance(item, int))
