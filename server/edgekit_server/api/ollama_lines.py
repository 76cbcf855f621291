"""An answer in Ollama's words: one JSON object a line, the last with `done`, or one for all.

Durations are nanoseconds. A silent stream gets a line without text now and then: readers take
every line for JSON, so there is no other way to keep a connection alive.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fastapi import Request

from ..chat.parser import Event, ReasoningText, Text, ToolCall, merge
from ..engine.wire import TopToken
from ..errors import ServerError
from .body import while_connected
from .choice import Choice
from .conversation import Conversation
from .sse import EventStream

Fields = dict[str, object]


class LineStream(EventStream):
    media_type = "application/x-ndjson"


@dataclass(slots=True)
class Clock:
    """When what happened, by time.monotonic_ns()."""

    began: int = field(default_factory=time.monotonic_ns)
    loaded: int = 0
    """The model was there."""
    accepted: int = 0
    """The engine has the prompt."""
    first: int | None = None
    """The first output came."""

    def durations(self, prefill_ms: float | None) -> Fields:
        """Return what the last line says. The engine's own `prefill_ms` leaves out the time that
        a prompt waited for its turn; None: all the time until the first output."""
        now = time.monotonic_ns()
        first = now if self.first is None else self.first
        waited = first - self.accepted
        return {
            "total_duration": now - self.began,
            "load_duration": self.loaded - self.began,
            "prompt_eval_duration": waited if prefill_ms is None else round(prefill_ms * 1e6),
            "eval_duration": now - first,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """Writes the answer to one request."""

    name: str
    """The model as the client called it."""
    chat: bool
    """False: /api/generate's words."""
    clock: Clock

    def part(self, events: Sequence[Event] = (), *, done: bool = False) -> Fields:
        """Return an object with what `events` say."""
        text = "".join(e.text for e in events if isinstance(e, Text))
        thinking = "".join(e.text for e in events if isinstance(e, ReasoningText))
        calls = [_call(e) for e in events if isinstance(e, ToolCall)]
        said: Fields = {"thinking": thinking} if thinking else {}
        if self.chat:
            said = {"message": {"role": "assistant", "content": text, **said}}
            if calls:
                said["message"] |= {"tool_calls": calls}  # type: ignore[operator]
        else:
            said = {"response": text, **said}
        return {"model": self.name, "created_at": timestamp(), **said, "done": done}

    def empty(self, reason: str) -> Fields:
        """Return the whole answer to a request that asks for no text: `load` or `unload`."""
        return {**self.part(done=True), "done_reason": reason}

    def end(self, conversation: Conversation, events: Sequence[Event] = ()) -> Fields:
        """Return the last object: why the answer ended, counts and durations."""
        choice, usage = conversation.choices[0], conversation.usage()
        return {
            **self.part(events, done=True),
            "done_reason": "length" if choice.finish == "length" else "stop",
            **self.clock.durations(choice.prefill_ms),
            "prompt_eval_count": usage.prompt_tokens,
            "eval_count": usage.completion_tokens,
            **_logprobs(choice),
        }

    async def lines(
        self, conversation: Conversation, keepalive_s: float
    ) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a stream; an error is its last line."""
        try:
            async for step in conversation.steps(keepalive_s):
                if step is None:
                    yield line(self.part())
                    continue
                self._arrived()
                choice, events = step
                for event in events:
                    yield line({**self.part([event]), **_logprobs(choice)})
        except ServerError as error:
            yield line({"error": error.message})
            return
        yield line(self.end(conversation))

    async def whole(self, conversation: Conversation, request: Request) -> Fields:
        """Return the answer as one object. ClientGoneError when the client leaves."""
        found: list[Event] = []

        async def collect() -> None:
            async for step in conversation.steps():
                if step is not None:
                    self._arrived()
                    found.extend(step[1])

        try:
            await while_connected(request, collect())
        finally:
            conversation.close()
        return self.end(conversation, merge(found))

    def _arrived(self) -> None:
        if self.clock.first is None:
            self.clock.first = time.monotonic_ns()


def line(fields: Mapping[str, object]) -> bytes:
    """Return one line. Compact, UTF-8 as it is."""
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"


def timestamp(seconds: float | None = None) -> str:
    """Return a moment of Unix time, or now, as RFC 3339 in UTC."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _call(call: ToolCall) -> Fields:
    """Arguments are an object here; the parser lets no call through whose text is none."""
    function = {
        "index": call.index,
        "name": call.name,
        "arguments": json.loads(call.arguments, parse_float=_finite),
    }
    return {"id": call.id, "function": function}


def _finite(number: str) -> float:
    """Return the float: beyond the largest is the largest, since JSON cannot say infinity."""
    return max(-sys.float_info.max, min(sys.float_info.max, float(number)))


def _logprobs(choice: Choice) -> Fields:
    """Return what was not delivered yet, if anything."""
    if not choice.logprobs:
        return {}
    entries, choice.logprobs = choice.logprobs, []

    def said(token: TopToken) -> Fields:
        return {
            "token": token.text.decode("utf-8", "replace"),
            "logprob": token.logprob,
            "bytes": list(token.text),
        }

    return {
        "logprobs": [
            {**said(token), **({"top_logprobs": [said(top) for top in tops]} if tops else {})}
            for token, tops in entries
        ]
    }
