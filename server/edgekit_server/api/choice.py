"""One choice of one answer: outputs in, events and the final account out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from ..call import Call
from ..chat.parser import Event, Parser
from ..engine.wire import GRAMMAR_FAILED, Output, TopToken
from ..errors import EngineDiedError, GrammarError, ServerError
from ..metrics import Metrics
from .deadline import timed_out


@dataclass(slots=True)
class Choice:
    """Reads what the engine generates for one choice."""

    index: int
    parser: Parser
    n_tokens: int = 0
    n_reasoning: int = 0
    """Those of `n_tokens` that were reasoning, its markers included."""
    n_cached: int = 0
    prefill_ms: float | None = None
    """The engine's own figure: from admission to the first token."""
    finish: str | None = None
    logprobs: list[tuple[TopToken, list[TopToken]]] = field(default_factory=list)
    """Not yet delivered: the chosen token and the best ones."""

    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finish is not None

    def take(self, output: Output) -> list[Event]:
        """Return the events of one output; sets `finish` when nothing more will come."""
        if output.finish == "error":
            raise _failed(output.error or "the engine failed this request")
        if output.finish == "timeout":
            raise timed_out()
        self.n_cached += output.n_cached or 0
        self.prefill_ms = output.prefill_ms if self.prefill_ms is None else self.prefill_ms
        events, n_fed = self._feed(output)
        self.n_tokens += n_fed
        tops = output.top_logprobs or [[] for _ in output.logprobs]
        self.logprobs += list(zip(output.logprobs, tops, strict=True))[:n_fed]
        if output.finish is not None or self.parser.done:
            events += self.parser.finish()
            self.finish = self._reason(output.finish)
        return events

    def _feed(self, output: Output) -> tuple[list[Event], int]:
        """Give the parser tokens until it needs no more; what came after a stop never was."""
        events: list[Event] = []
        for n_fed, piece in enumerate(output.pieces, start=1):
            reasoning = self.parser.reasoning
            events += self.parser.feed([piece])
            self.n_reasoning += reasoning or self.parser.reasoning
            if self.parser.done:
                return events, n_fed
        return events, len(output.pieces)

    def _reason(self, engine: str | None) -> str:
        if engine == "length" and not self.parser.done_early:
            return "length"
        return "tool_calls" if self.parser.n_calls else "stop"


def _failed(reason: str) -> ServerError:
    """Return the error for an answer that the engine gave up; a grammar is the client's own."""
    if reason.startswith(GRAMMAR_FAILED):
        said = reason.removeprefix(GRAMMAR_FAILED)
        return GrammarError(f"the grammar became too complex on the way: {said}")
    return EngineDiedError(reason, code="engine_error")


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0

    def as_dict(self) -> dict[str, object]:
        """Return OpenAI's form, the cached count always there."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def usage_of(call: Call, choices: Sequence[Choice], per_prompt: int) -> Usage:
    """Count each prompt once, however many choices it had."""
    return Usage(
        prompt_tokens=sum(call.n_prompt[::per_prompt]),
        completion_tokens=sum(choice.n_tokens for choice in choices),
        cached_tokens=sum(choice.n_cached for choice in choices[::per_prompt]),
        reasoning_tokens=sum(choice.n_reasoning for choice in choices),
    )


async def follow(
    call: Call, choices: Sequence[Choice], metrics: Metrics, keepalive_s: float | None = None
) -> AsyncGenerator[tuple[Choice, list[Event]] | None, None]:
    """Yield (choice, events) until all choices finished; None after each silent `keepalive_s`.

    Silent is also an engine whose tokens show nothing yet: the arguments of a long call.
    Raises the ServerError that ended the call. The engine stops working on a choice as soon as
    its parser needs no more.
    """
    timer = metrics.timer(call.n_prompt, call.began)
    shown_s = time.monotonic()
    try:
        while not all(choice.ended() for choice in choices):
            arrival = await call.next(keepalive_s)
            if arrival is None:
                shown_s = time.monotonic()
                yield None
                continue
            choice = choices[arrival.index]
            if isinstance(arrival.output, ServerError):
                raise arrival.output
            if choice.ended():
                continue
            timer.output(len(arrival.output.tokens))
            events = choice.take(arrival.output)
            if choice.ended():
                call.cancel(choice.index)
            yield choice, events
            if events:
                shown_s = time.monotonic()
            elif keepalive_s is not None and time.monotonic() - shown_s >= keepalive_s:
                shown_s = time.monotonic()
                yield None
    finally:
        call.cancel()
