"""POST /v1/completions: raw text, token ids, and fill-in-the-middle through `suffix`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..call import Call
from ..chat.family import PLAIN
from ..chat.fim import fim_pieces
from ..chat.middle import Middle
from ..chat.parser import Event, Parser, Text
from ..engine.wire import Piece, TopToken
from ..errors import RequestError, ServerError
from ..router import Model
from .body import body_document, read_model, while_connected
from .choice import Choice, follow, usage_of
from .constraints import grammar_of
from .deadline import deadline_of
from .failures import error_body
from .fim_prompt import fim_prompt
from .lora import lora_of
from .newest import newest
from .params import check_max_tokens, generates, sampling_of, with_bos
from .schema import MAX_CHOICES, CompletionRequest, Prompt
from .sse import DONE, KEEP_ALIVE, EventStream, event

routes = APIRouter()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A validated request."""

    body: CompletionRequest
    model: Model
    echoes: list[str]
    """Per prompt, the text that goes before the answer."""
    id: str
    created: int


@routes.post("/v1/completions", openapi_extra=body_document(CompletionRequest))
async def completions(request: Request) -> Response:
    """Continue text, or fill in between `prompt` and `suffix`."""
    body = await read_model(request, CompletionRequest)
    begin = _begin(request, body)
    if body.suffix:
        (prepared, call), _ = await newest(request, begin, lambda begun: begun[1])
    else:
        prepared, call = await while_connected(request, begin)
    n_choices = len(prepared.echoes) * (body.n or 1)
    choices = [Choice(i, _parser(body)) for i in range(n_choices)]
    if body.stream:
        return EventStream(_stream(prepared, call, choices, request), call.cancel)
    texts = [_echo(prepared, choice) for choice in choices]
    try:

        async def collect() -> None:
            async for step in follow(call, choices, request.app.state.metrics):
                if step is not None:
                    texts[step[0].index] += _text(step[1])

        await while_connected(request, collect())
    finally:
        call.cancel()
    call.check()
    return JSONResponse(
        {
            **_head(prepared),
            "choices": [
                {
                    "index": choice.index,
                    "text": texts[choice.index],
                    "logprobs": None
                    if body.logprobs is None
                    else _logprobs(choice, len(_echo(prepared, choice))),
                    "finish_reason": choice.finish,
                }
                for choice in choices
            ],
            "usage": usage_of(call, choices, body.n or 1).as_dict(),
        }
    )


async def _begin(request: Request, body: CompletionRequest) -> tuple[Prepared, Call]:
    role = "fim" if body.suffix else "completion"
    model: Model = await request.app.state.router.model(body.model, role=role)
    grammar = grammar_of(body)
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise RequestError(
            "best_of above n is not supported", code="unsupported_parameter", param="best_of"
        )
    prompts = _prompts(body.prompt)
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise RequestError(
            f"{len(prompts)} prompts times n={body.n or 1} is more than {MAX_CHOICES} choices",
            code="invalid_value",
            param="prompt",
        )
    echoes = [_echo_text(prompt) if body.echo else "" for prompt in prompts]
    sampling = sampling_of(body, model.hello, body.logprobs)
    limit = check_max_tokens(body.max_tokens, "max_tokens")
    lora = lora_of(body.lora, model.hello)
    given = [await _tokenizable(prompt, body.suffix, model) for prompt in prompts]
    requests = [
        # The parser ends a middle at its first control token, so it must see each one.
        replace(generate, whole=generate.whole and not body.suffix)
        for prompt in given
        for generate in generates(prompt, body, sampling, limit, grammar, lora)
    ]
    waits_s = deadline_of(request)
    call = await model.client.generate(requests, param="prompt", deadline_s=waits_s)
    return Prepared(body, model, echoes, f"cmpl-{uuid.uuid4().hex}", int(time.time())), call


def _parser(body: CompletionRequest) -> Parser:
    if body.suffix:
        return Middle(stop=body.stops)
    return Parser(PLAIN, stop=body.stops, tools=False)


def _prompts(prompt: Prompt) -> list[str | list[int]]:
    """Return one item per prompt: text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("prompt is an empty list", code="invalid_value", param="prompt")
    tokens = [item for item in prompt if isinstance(item, int)]
    return [tokens] if tokens else [item for item in prompt if not isinstance(item, int)]


async def _tokenizable(
    prompt: str | list[int], suffix: str | None, model: Model
) -> list[Piece] | list[int]:
    """Return the prompt for the engine. Raw text may name control tokens: editors rely on it."""
    if isinstance(prompt, list):
        if suffix:
            raise RequestError(
                "suffix needs a prompt in text, not token ids", code="invalid_value", param="suffix"
            )
        wrong = next((t for t in prompt if not 0 <= t < model.hello.n_vocab), None)
        if wrong is not None:
            raise RequestError(
                f"prompt: {wrong} is no token id of this model (0 to {model.hello.n_vocab - 1})",
                code="bad_token",
                param="prompt",
            )
        return prompt
    if suffix:
        pieces = with_bos(fim_pieces(prompt, suffix, model.hello.fim), model.hello)
        return await fim_prompt(model, pieces)
    return with_bos([(prompt, True)] if prompt else [], model.hello)


def _echo_text(prompt: str | list[int]) -> str:
    if isinstance(prompt, list):
        raise RequestError(
            "echo needs a prompt in text, not token ids", code="unsupported_parameter", param="echo"
        )
    return prompt


def _echo(prepared: Prepared, choice: Choice) -> str:
    return prepared.echoes[choice.index // (prepared.body.n or 1)]


def _head(prepared: Prepared) -> dict[str, object]:
    return {
        "id": prepared.id,
        "object": "text_completion",
        "created": prepared.created,
        "model": prepared.model.id,
    }


def _text(events: Sequence[Event]) -> str:
    return "".join(item.text for item in events if isinstance(item, Text))


async def _stream(
    prepared: Prepared, call: Call, choices: Sequence[Choice], request: Request
) -> AsyncGenerator[bytes, None]:
    body, state, head = prepared.body, request.app.state, _head(prepared)
    offsets = [len(_echo(prepared, choice)) for choice in choices]

    def chunk(choice: Choice, text: str, finish: str | None = None) -> bytes:
        item: dict[str, object] = {"index": choice.index, "text": text, "finish_reason": finish}
        if body.logprobs is not None and choice.logprobs:
            item["logprobs"] = _logprobs(choice, offsets[choice.index])
            offsets[choice.index] += sum(len(_said(t)) for t, _ in choice.logprobs)
            choice.logprobs = []
        return event({**head, "choices": [item]})

    try:
        for choice in choices:
            if _echo(prepared, choice):
                yield chunk(choice, _echo(prepared, choice))
        async for step in follow(call, choices, state.metrics, state.config.keepalive_s):
            if step is None:
                yield KEEP_ALIVE
                continue
            choice, text = step[0], _text(step[1])
            if text or choice.finish is not None:
                yield chunk(choice, text, choice.finish)
    except ServerError as error:
        yield event(error_body(error))
        return
    if body.include_usage:
        usage = usage_of(call, choices, body.n or 1).as_dict()
        yield event({**head, "choices": [], "usage": usage})
    yield DONE


def _said(token: TopToken) -> str:
    return token.text.decode("utf-8", "replace")


def _logprobs(choice: Choice, offset: int) -> dict[str, object]:
    """Return the legacy shape: four lists side by side; offsets count characters."""
    offsets, at = [], offset
    for token, _ in choice.logprobs:
        offsets.append(at)
        at += len(_said(token))
    return {
        "tokens": [_said(token) for token, _ in choice.logprobs],
        "token_logprobs": [token.logprob for token, _ in choice.logprobs],
        "top_logprobs": [{_said(t): t.logprob for t in tops} for _, tops in choice.logprobs],
        "text_offset": offsets,
    }
