"""The load generator: closed-loop streaming requests over HTTP, folded into a LatencyRecord.

Each user sends the next request when the last one ended, all users start together, and a level
ends when each has sent its share. Inside the clock: writing the request, the server's queue,
tokenizing, prefill, decode and the loopback or network both ways. Outside: connecting (every
user's connection is opened by a warm-up), building the prompt, parsing the answer.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx

from edgekit.errors import UsageError
from edgekit.latency_client import stream_one
from edgekit.latency_memory import MemoryPeak
from edgekit.latency_prompts import Load, calibrate
from edgekit.report.record import Ceiling, LatencyRecord, LatencyRow
from edgekit.report.statistics import Sample, summarise

METHOD: tuple[tuple[str, str], ...] = (
    (
        "Load",
        "Closed loop: each user sends the next request when the last one ended; all start at once.",
    ),
    (
        "Clock",
        "From handing the request to an open connection until bytes are read: queue, tokenizing, "
        "prefill, decode and the way there and back are inside; connecting and parsing are not.",
    ),
    (
        "Drafts",
        "Asked to be off (speculative.n_max 0): answers to random prompts repeat themselves, so "
        "guessing ahead would look better than it is on real text.",
    ),
    ("TTFT", "Send to first token."),
    (
        "ITL",
        "Gap between successive tokens of one answer; tokens that arrive together share the gap.",
    ),
    ("TPOT", "(last token - first token) / (output tokens - 1), one figure per request."),
    ("E2E", "Send to the end of the stream."),
    (
        "Percentiles",
        "Linear between closest ranks (Hyndman and Fan type 7). p95 needs 20 samples and p99 "
        "needs 100; with fewer they are unknown. Failed requests enter no percentile.",
    ),
    (
        "decode_tok_s",
        "All users: tokens after each first one / time in which any answer was being decoded.",
    ),
    ("decode_tok_s_each", "One user: 1000 / median TPOT."),
    (
        "prefill_tok_s",
        "All users: prompt tokens / time in which any request waited for its first token; queue "
        "and first decode step included, so a lower bound.",
    ),
    ("Memory", "Peak resident memory of the server's processes on the host, sampled."),
)

BUSY_CLIENT = 0.7


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: the level's users, requests done of those planned, failures so far."""

    users: int
    done: int
    total: int
    errors: int


def measure(
    base_url: str,
    model: str,
    *,
    users: Sequence[int],
    prompt_tokens: int,
    output_tokens: int,
    requests_per_user: int,
    api_key: str | None = None,
    ceiling: Ceiling | None = None,
    progress: Callable[[Progress], None] | None = None,
    min_requests: int = 0,
    level_limit_s: float | None = None,
    timeout_s: float = 600.0,
    pids: Sequence[int] = (),
    seed: int | None = None,
) -> LatencyRecord:
    """Load the server with each number of `users` in turn and return what its clients saw.

    Args:
        base_url: with or without the trailing `/v1`.
        requests_per_user: requests each user sends at each level.
        min_requests: send more per user where a level would stay below this many in all; 20
            gives every level a p95.
        level_limit_s: start no further request on a level after this long; the row then holds
            fewer requests and a note says so.
        timeout_s: limit of one request; a request beyond it is an error of the level.
        pids: server processes whose resident memory is watched, children included.
        seed: of the prompts; None (the default) differs each run, or a second run on the same
            server would find its prompts cached.

    The caller adds what only it knows (device, filetype, n_ctx, predicted, plan_digest) with
    `dataclasses.replace`.

    Raises:
        UsageError: nothing to measure, or the prompt and answer do not fit the context.
        EngineFailedError: no server there, or it cannot answer one request.
        DeniedError: the API key is missing or wrong.
        MissingInputError: the server has no such model.
        BadDataError: the answer is not a completion stream.
    """
    if not users or min(*users, prompt_tokens, output_tokens, requests_per_user) < 1:
        raise UsageError(
            "users, prompt tokens, output tokens and requests must all be at least 1",
            code="bad_load",
            hint="for example --users 1,2,4,8 --prompt-tokens 512 --output-tokens 128",
        )
    endpoint = api_root(base_url)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    rng = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311
    notes: list[str] = []

    async def run() -> list[LatencyRow]:
        async with _client(endpoint, api_key, max(users)) as client:
            load, how = await calibrate(client, model, rng, prompt_tokens, output_tokens, timeout_s)
            notes.extend(how)
            return [
                await _level(
                    client,
                    load,
                    n,
                    max(requests_per_user, math.ceil(min_requests / n)),
                    level_limit_s,
                    progress,
                    notes,
                )
                for n in users
            ]

    with MemoryPeak(pids) as memory:
        rows = asyncio.run(run())
    notes += _doubts(rows, prompt_tokens, output_tokens)
    return LatencyRecord(
        model=model,
        rows=tuple(rows),
        prompt_tokens_asked=prompt_tokens,
        output_tokens_asked=output_tokens,
        peak_memory_bytes=memory.peak_bytes,
        ceiling=ceiling,
        endpoint=endpoint,
        created_at=began,
        method=METHOD,
        notes=tuple(notes),
    )


def api_root(base_url: str) -> str:
    """Return `base_url` ending in `/v1`, without credentials, query or a trailing slash."""
    parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"{base_url!r} is not an HTTP address",
            code="bad_url",
            hint="for example http://127.0.0.1:8484/v1",
        )
    host = parts.netloc.rpartition("@")[2]
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{host}{path if path.endswith('/v1') else path + '/v1'}"


def _client(endpoint: str, api_key: str | None, users: int) -> httpx.AsyncClient:
    host = urlsplit(endpoint).hostname
    return httpx.AsyncClient(
        base_url=endpoint + "/",
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(None, connect=10.0),
        limits=httpx.Limits(max_connections=users, max_keepalive_connections=users),
        # A proxy between us and our own machine would be measured too.
        trust_env=host not in ("127.0.0.1", "::1", "localhost"),
    )


async def _level(
    client: httpx.AsyncClient,
    load: Load,
    users: int,
    requests_each: int,
    limit_s: float | None,
    progress: Callable[[Progress], None] | None,
    notes: list[str],
) -> LatencyRow:
    """Run one number of users: a warm-up that opens every connection, then the clock."""
    warm = [load.body(min(16, load.prompt_size), 2) for _ in range(users)]
    await asyncio.gather(*(stream_one(client, body, load.timeout_s) for body in warm))
    samples: list[Sample] = []
    total = users * requests_each
    began = time.perf_counter()

    def report() -> None:
        if progress is not None:
            failed = sum(sample.error is not None for sample in samples)
            progress(Progress(users, len(samples), total, failed))

    async def user() -> None:
        for _ in range(requests_each):
            if limit_s is not None and samples and time.perf_counter() - began > limit_s:
                return
            body = load.body(load.prompt_size, load.output_tokens)
            samples.append(await stream_one(client, body, load.timeout_s))
            report()

    report()
    cpu_began = time.thread_time()
    await asyncio.gather(*(user() for _ in range(users)))
    wall_s = time.perf_counter() - began
    notes += busy_client(users, time.thread_time() - cpu_began, wall_s)
    if len(samples) < total:
        notes.append(
            f"{users} users: stopped after {limit_s:.0f} s with {len(samples)} of {total} requests"
        )
    return summarise(users, samples, wall_s)


def busy_client(users: int, cpu_s: float, wall_s: float) -> list[str]:
    """Warn when the load generator's own thread was so busy that it may be what was measured."""
    share = cpu_s / wall_s if wall_s > 0 else 0.0
    if share < BUSY_CLIENT:
        return []
    return [
        f"{users} users: the load generator kept {100 * share:.0f} % of one core busy, "
        "so the server may be faster than shown"
    ]


def _doubts(rows: Sequence[LatencyRow], prompt_tokens: int, output_tokens: int) -> list[str]:
    """Say where what was measured differs from what was asked."""
    notes: list[str] = []
    good = [row for row in rows if row.errors < row.requests]
    for what, asked in (("prompt", prompt_tokens), ("output", output_tokens)):
        lows = [getattr(row, f"{what}_tokens_min") for row in good]
        highs = [getattr(row, f"{what}_tokens_max") for row in good]
        noun = "prompts" if what == "prompt" else "answers"
        if None in lows:
            notes.append(f"the server did not say how long its {noun} were")
        elif lows and (min(lows), max(highs)) != (asked, asked):
            low, high = f"{min(lows):,}", f"{max(highs):,}"
            span = low if low == high else f"{low} to {high}"
            notes.append(f"{noun} were {span} tokens, asked {asked:,}")
    cached = [row.cached_tokens_max for row in good]
    if good and all(value is None for value in cached):
        notes.append("the server did not say whether it reused cached prompt tokens")
    elif most := max((value for value in cached if value is not None), default=0):
        notes.append(f"the server reused up to {most:,} cached prompt tokens of a request")
    for row in rows:
        if row.errors:
            kinds = ", ".join(f"{kind} × {count}" for kind, count in row.error_kinds)
            notes.append(f"{row.users} users: {row.errors} of {row.requests} failed ({kinds})")
    return notes
