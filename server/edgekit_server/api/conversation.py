"""One conversation on its way to an answer: what every chat dialect shares.

A dialect turns its body into a ChatRequest, calls `begin`, then reads `steps` (a stream) or
`whole` and writes the events in its own words. Whoever began it must see to it that `close` runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Request

from ..call import Call
from ..chat.adapt import adapted
from ..chat.normalise import normalise
from ..chat.parser import Event, Parser, merge
from ..chat.template import Rendered
from ..engine.wire import Grammar
from ..errors import RequestError
from ..metrics import Metrics
from ..router import Model
from .body import while_connected
from .choice import Choice, Usage, follow, usage_of
from .constraints import after_reasoning, grammar_of, in_reasoning
from .deadline import deadline_of
from .lora import lora_of
from .params import check_max_tokens, generates, sampling_of, with_bos
from .schema import ChatRequest
from .tools import Tool, grammar_with, offered


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the model will read it."""

    model: Model
    rendered: Rendered
    tools: list[Tool]
    grammar: Grammar | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request that the engine accepted."""

    body: ChatRequest
    model: Model
    call: Call
    choices: Sequence[Choice]
    metrics: Metrics

    def steps(
        self, keepalive_s: float | None = None
    ) -> AsyncGenerator[tuple[Choice, list[Event]] | None, None]:
        """Yield (choice, events) to the end; None after each silent `keepalive_s`.

        Raises the ServerError that ended it.
        """
        return follow(self.call, self.choices, self.metrics, keepalive_s)

    async def whole(self, request: Request) -> list[list[Event]]:
        """Return each choice's events, merged. ClientGoneError when the client leaves."""
        results: list[list[Event]] = [[] for _ in self.choices]

        async def collect() -> None:
            async for step in self.steps():
                if step is not None:
                    results[step[0].index] += step[1]

        try:
            await while_connected(request, collect())
        finally:
            self.close()
        return [merge(events) for events in results]

    def usage(self) -> Usage:
        """Count tokens so far."""
        return usage_of(self.call, self.choices, len(self.choices))

    def close(self) -> None:
        """Let the engine forget what is still running."""
        self.call.cancel()


async def begin(request: Request, body: ChatRequest) -> Conversation:
    """Validate, render, and hand to the engine; returns when it accepted the prompt.

    RequestError: what the client must change. ClientGoneError when it leaves meanwhile.
    """
    return await while_connected(request, _begin(request, body))


async def prompt_of(request: Request, body: ChatRequest) -> Prompt:
    """Return the prompt of a conversation without running it."""
    model: Model = await request.app.state.router.model(body.model)
    answer = grammar_of(body)
    if model.template is None:
        raise RequestError(
            "this model has no chat template; use /v1/completions", code="no_chat_template"
        )
    tools = offered(body)
    grammar = grammar_with(answer, body, tools, model.spec, model.hello)
    thinking = body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs else None
    if thinking is None and body.reasoning_effort == "none":
        thinking = False
    render = partial(
        model.template.render,
        enable_thinking=thinking,
        reasoning_effort=body.reasoning_effort,
        context=dict(model.spec.context),
    )
    shown = [tool.shown for tool in tools]
    rendered = await asyncio.to_thread(
        lambda: render(
            *adapted(normalise(body.messages, reasoning=model.spec.reasons), shown, model.spec)
        )
    )
    if grammar is not None and not grammar.lenient:
        grammar = after_reasoning(grammar, model.spec, rendered, model.hello, thinking=thinking)
    return Prompt(model, rendered, tools, grammar)


async def _begin(request: Request, body: ChatRequest) -> Conversation:
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError(
            "top_logprobs needs logprobs to be true", code="invalid_value", param="top_logprobs"
        )
    later = body.max_completion_tokens is not None
    limit = check_max_tokens(
        body.max_completion_tokens if later else body.max_tokens,
        "max_completion_tokens" if later else "max_tokens",
    )
    prompt = await prompt_of(request, body)
    model = prompt.model
    sampling = sampling_of(body, model.hello, (body.top_logprobs or 0) if body.logprobs else None)
    requests = generates(
        with_bos(prompt.rendered.pieces, model.hello),
        body,
        sampling,
        limit,
        prompt.grammar,
        lora_of(body.lora, model.hello),
        tools=bool(prompt.tools),
    )
    waits_s = deadline_of(request)
    call = await model.client.generate(requests, param="messages", deadline_s=waits_s)
    choices = [_choice(body, prompt, i) for i in range(body.n or 1)]
    return Conversation(body, model, call, choices, request.app.state.metrics)


def _choice(body: ChatRequest, prompt: Prompt, index: int) -> Choice:
    parser = Parser(
        prompt.model.spec,
        stop=body.stops,
        tools=bool(prompt.tools),
        offered={tool.function.name: tool.function.parameters for tool in prompt.tools},
        max_calls=1 if body.parallel_tool_calls is False else None,
        in_reasoning=in_reasoning(prompt.model.spec, prompt.rendered),
    )
    return Choice(index, parser)
