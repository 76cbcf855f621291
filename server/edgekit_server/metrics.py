"""Counters and histograms, rendered as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .engine.wire import Pulse

TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(slots=True)
class Histogram:
    """Counts per bucket; the last count is everything above the last bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, about: str) -> list[str]:
        lines = [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
        running = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            running += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {running}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {running}"]


class Metrics:
    """All figures of one server. Touched on the event loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.ttft = Histogram(TTFT_S)
        self.itl = Histogram(ITL_S)

    def timer(self, n_prompt: Sequence[int]) -> Timer:
        """Begin timing an accepted request with these prompt lengths, in tokens."""
        self.prompt_tokens += sum(n_prompt)
        return Timer(self)

    def request(self, route: str, status: int) -> None:
        """Count one answered HTTP request."""
        self.requests[route, status] += 1

    def render(
        self, *, in_flight: int, restarts: int, ready: bool, pulse: Pulse | None = None
    ) -> str:
        """Return the text that Prometheus scrapes. `pulse`: the engine child's own totals."""
        engine = pulse or Pulse(0, 0)
        lines = [
            "# HELP edgekit_requests_total HTTP requests answered.",
            "# TYPE edgekit_requests_total counter",
            *(
                f'edgekit_requests_total{{route="{route}",status="{status}"}} {count}'
                for (route, status), count in sorted(self.requests.items())
            ),
        ]
        for name, kind, about, value in (
            ("prompt_tokens_total", "counter", "Prompt tokens accepted.", self.prompt_tokens),
            ("output_tokens_total", "counter", "Tokens generated.", self.output_tokens),
            ("engine_restarts_total", "counter", "Engine children restarted.", restarts),
            ("engine_steps_total", "counter", "Steps of this engine child.", engine.n_steps),
            (
                "engine_decode_seconds_total",
                "counter",
                "Time of its steps inside llama_decode.",
                round(engine.decode_s, 6),
            ),
            (
                "engine_busy_seconds_total",
                "counter",
                "Time of its steps, all they do included.",
                round(engine.busy_s, 6),
            ),
            ("draft_tokens_total", "counter", "Tokens guessed ahead.", engine.n_drafted),
            (
                "draft_tokens_accepted_total",
                "counter",
                "Guessed tokens that were right.",
                engine.n_accepted,
            ),
            ("requests_in_flight", "gauge", "Choices queued or running.", in_flight),
            ("ready", "gauge", "Whether the model is loaded.", int(ready)),
        ):
            lines += [f"# HELP edgekit_{name} {about}", f"# TYPE edgekit_{name} {kind}"]
            lines.append(f"edgekit_{name} {value}")
        lines += self.ttft.lines(
            "edgekit_ttft_seconds", "Acceptance to first token, queueing and prefill included."
        )
        lines += self.itl.lines("edgekit_itl_seconds", "Gap between outputs of one request.")
        return "\n".join(lines) + "\n"


class Timer:
    """Times the outputs of one HTTP request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = time.monotonic()
        self._first = True

    def output(self, n_tokens: int) -> None:
        """Note one output of the engine."""
        if not n_tokens:
            return
        now = time.monotonic()
        (self._metrics.ttft if self._first else self._metrics.itl).observe(now - self._last)
        self._metrics.output_tokens += n_tokens
        self._first, self._last = False, now
