"""Run llama-server style requests: time limits per phase, and the timings of each answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from ..call import Arrival, Call
from ..chat.parser import Event
from ..errors import ServerError
from ..metrics import Metrics, Timer
from .choice import Choice


@dataclass(frozen=True, slots=True)
class Limits:
    """The longest that each phase of an answer may take, in seconds; None: any time."""

    prompt_s: float | None = None
    """From acceptance to the first token, the wait for other requests included."""
    predict_s: float | None = None
    """From the first token on."""

    @classmethod
    def of_ms(cls, prompt: float | None, predict: float | None) -> Limits:
        """Return the limits from milliseconds; not above 0: none."""
        return cls(
            *(ms / 1000.0 if ms is not None and ms > 0 else None for ms in (prompt, predict))
        )

    @property
    def any(self) -> bool:
        return self.prompt_s is not None or self.predict_s is not None


@dataclass(slots=True)
class Track:
    """What one answer took. Times are monotonic seconds."""

    began: float
    choice: Choice
    first: float | None = None
    last: float | None = None
    engine_finish: str | None = None
    limit: str | None = None
    """The time limit that ended it, by the client's name for it."""
    tokens: list[int] = field(default_factory=list)
    n_drafted: int | None = None
    n_accepted: int | None = None

    def take(self, arrival: Arrival, now: float) -> list[Event]:
        """Note what arrived; return its events. Raises what ended the call."""
        output = arrival.output
        if isinstance(output, ServerError):
            raise output
        if self.first is None:
            self.first = now
        self.last = now
        before = self.choice.n_tokens
        events = self.choice.take(output)
        self.tokens += output.tokens[: self.choice.n_tokens - before]
        if output.finish is not None:
            self.engine_finish = output.finish
            self.n_drafted, self.n_accepted = output.n_drafted, output.n_accepted
        return events

    def due(self, limits: Limits) -> tuple[float, str] | None:
        """Return when the present phase must end, and the limit that says so."""
        if self.first is None:
            if limits.prompt_s is not None:
                return self.began + limits.prompt_s, "t_max_prompt_ms"
        elif limits.predict_s is not None:
            return self.first + limits.predict_s, "t_max_predict_ms"
        return None

    def stop(self, limit: str) -> list[Event]:
        """End the answer at a limit: what there is, is the answer."""
        self.limit = limit
        self.choice.finish = "length"
        return self.choice.parser.finish()

    def timings(self, n_prompt: int, now: float) -> dict[str, object]:
        """Return llama-server's object; a phase that never was, or did not end, counts 0 tokens."""
        cached = self.choice.n_cached
        computed = max(0, n_prompt - cached) if self.first is not None else 0
        waited_ms = ((self.first or now) - self.began) * 1000.0
        measured = self.choice.prefill_ms
        prompt_ms = waited_ms if measured is None else measured
        predicted_ms = 0.0
        if self.first is not None and self.last is not None:
            predicted_ms = (self.last - self.first) * 1000.0
        timings: dict[str, object] = {"cache_n": cached}
        phases = (
            ("prompt", computed, prompt_ms),
            ("predicted", self.choice.n_tokens, predicted_ms),
        )
        for name, n, ms in phases:
            timings[f"{name}_n"] = n
            timings[f"{name}_ms"] = round(ms, 3)
            timings[f"{name}_per_token_ms"] = round(ms / n, 3) if n else 0.0
            timings[f"{name}_per_second"] = round(n / ms * 1000.0, 3) if ms > 0 else 0.0
        if self.n_drafted:
            timings |= {"draft_n": self.n_drafted, "draft_n_accepted": self.n_accepted}
        return timings


async def timed(
    call: Call,
    tracks: Sequence[Track],
    limits: Limits,
    metrics: Metrics,
    keepalive_s: float | None = None,
) -> AsyncGenerator[tuple[Track, list[Event]] | None, None]:
    """Yield (track, events) until all ended; None after each silent `keepalive_s`.

    An answer whose phase takes longer than its limit ends there, and the engine drops it before
    its next step. Raises the ServerError that ended the call.
    """
    timer = metrics.timer(call.n_prompt, call.began)
    try:
        while live := [track for track in tracks if not track.choice.ended()]:
            dues = [due for track in live if (due := track.due(limits)) is not None]
            step = await _next(call, tracks, timer, _patience(dues, keepalive_s))
            now = time.monotonic()
            if step is not None:
                yield step
            elif not any(at <= now for at, _ in dues):
                yield None
            for track in live:
                due = track.due(limits)
                if track.choice.ended() or due is None or due[0] > now:
                    continue
                call.cancel(track.choice.index)
                yield track, track.stop(due[1])
    finally:
        call.cancel()


def _patience(dues: Sequence[tuple[float, str]], keepalive_s: float | None) -> float | None:
    """Return how long to wait for the next arrival."""
    waits = [max(0.0, min(at for at, _ in dues) - time.monotonic())] if dues else []
    if keepalive_s is not None:
        waits.append(keepalive_s)
    return min(waits, default=None)


async def _next(
    call: Call, tracks: Sequence[Track], timer: Timer, patience_s: float | None
) -> tuple[Track, list[Event]] | None:
    """Take the next arrival; None if there was none in time, or nobody needs it."""
    arrival = await call.next(patience_s)
    if arrival is None:
        return None
    track = tracks[arrival.index]
    if track.choice.ended() and not isinstance(arrival.output, ServerError):
        return track, []
    if not isinstance(arrival.output, ServerError):
        timer.output(len(arrival.output.tokens))
    events = track.take(arrival, time.monotonic())
    if track.choice.ended():
        call.cancel(track.choice.index)
    return track, events
