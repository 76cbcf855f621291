"""Counters and histograms, rendered as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .engine.wire import Pulse
from .recent import Recent

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


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One of several models, now."""

    id: str
    loaded: bool
    loads: int
    in_flight: int


class Metrics:
    """All figures of one server. Touched on the event loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.ttft = Histogram(TTFT_S)
        self.itl = Histogram(ITL_S)
        self.recent = Recent()

    def timer(self, n_prompt: Sequence[int], since: float | None = None) -> Timer:
        """Begin timing an accepted request with these prompt lengths, in tokens.

        `since`: monotonic time at which it was handed to the engine, now if None. A small model's
        first token can be here before the acceptance has been dealt with.
        """
        self.prompt_tokens += sum(n_prompt)
        return Timer(self, since)

    def request(self, route: str, status: int) -> None:
        """Count one answered HTTP request."""
        self.requests[route, status] += 1

    def render(
        self,
        *,
        in_flight: int,
        restarts: int,
        ready: bool,
        pulse: Pulse | None = None,
        models: Sequence[ModelFigures] = (),
        waiting: int = 0,
    ) -> str:
        """Return the text that Prometheus scrapes. `pulse`: the engine children's own totals."""
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
            ("engine_steps_total", "counter", "Steps of the engine children.", engine.n_steps),
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
            ("requests_waiting", "gauge", "Requests whose model finds no room yet.", waiting),
            ("ready", "gauge", "Whether the models of the start are loaded.", int(ready)),
        ):
            lines += [f"# HELP edgekit_{name} {about}", f"# TYPE edgekit_{name} {kind}"]
            lines.append(f"edgekit_{name} {value}")
        lines += model_lines(models)
        lines += self.ttft.lines(
            "edgekit_ttft_seconds", "Hand-over to first token, queueing and prefill included."
        )
        lines += self.itl.lines("edgekit_itl_seconds", "Gap between outputs of one request.")
        return "\n".join(lines) + "\n"


def model_lines(models: Sequence[ModelFigures]) -> list[str]:
    """Return what is said of each model, labelled with its name."""
    lines: list[str] = []
    for name, kind, about, values in (
        ("loaded", "gauge", "Whether the model is loaded.", [int(m.loaded) for m in models]),
        ("loads_total", "counter", "Times it was loaded.", [m.loads for m in models]),
        ("requests_in_flight", "gauge", "Its choices queued or running.",
         [m.in_flight for m in models]),
    ):  # fmt: skip
        lines += [f"# HELP edgekit_model_{name} {about}", f"# TYPE edgekit_model_{name} {kind}"]
        for model, value in zip(models, values, strict=True):
            lines.append(f'edgekit_model_{name}{{model="{_label(model.id)}"}} {value}')
    return lines


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Timer:
    """Times the outputs of one HTTP request."""

    def __init__(self, metrics: Metrics, since: float | None = None) -> None:
        self._metrics = metrics
        self._last = time.monotonic() if since is None else since
        self._first = True

    def output(self, n_tokens: int) -> None:
        """Note one output of the engine."""
        if not n_tokens:
            return
        now = time.monotonic()
        metrics, wait_s = self._metrics, now - self._last
        (metrics.ttft if self._first else metrics.itl).observe(wait_s)
        metrics.recent.output(now, wait_s, n_tokens, first=self._first)
        metrics.output_tokens += n_tokens
        self._first, self._last = False, now
