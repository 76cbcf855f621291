"""What is played on a running server, and what is measured there."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jsonschema

from tests.benchmarks.serve import texts
from tests.benchmarks.serve.client import Answer, post
from tests.benchmarks.serve.figures import gaps, percentile

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY = {"temperature": 0.0}
USERS = (1, 4, 8, 16)
OURS, PEER, PYTHON_PEER = "edgekit", "llama-server", "llama_cpp.server"
NO_DRAFTS = "edgekit:speculation=off"
BOTH = (OURS, PEER)
Q4_K_M, Q4_0 = "synthetic-q4_k_m", "synthetic-q4_0"


@dataclass(frozen=True, slots=True)
class Stage:
    """A server to play on. `rng` gives every server of a round the same texts."""

    port: int
    rng: random.Random
    quick: bool

    def sized(self, full: int, quick: int) -> int:
        return quick if self.quick else full


Play = Callable[[Stage], Awaitable[Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    about: str
    model: str
    n_seq: int
    longest: int
    play: Play
    servers: tuple[str, ...] = BOTH
    max_rounds: int | None = None


def completion(prompt: str, n: int, **more: object) -> dict[str, object]:
    """Return the body of a request for exactly n tokens."""
    return {"prompt": prompt, "max_tokens": n, "ignore_eos": True, **more}


def streamed(body: Mapping[str, object]) -> dict[str, object]:
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


def _throughput(answers: Sequence[Answer]) -> dict[str, float]:
    wall_s = max(a.ended for a in answers) - min(a.began for a in answers)
    n = sum(a.n_answer for a in answers)
    return {"tokens_per_s": n / wall_s, "tokens": n, "wall_s": wall_s}


async def _together(stage: Stage, bodies: Sequence[Mapping[str, object]]) -> list[Answer]:
    return await asyncio.gather(*(post(stage.port, COMPLETIONS, body) for body in bodies))


async def _users(stage: Stage, *, n: int, sampling: Mapping[str, object]) -> dict[str, float]:
    """n users ask at once; whole answers, so the client costs next to nothing."""
    n_new = stage.sized(128, 16)
    bodies = [completion(texts.words(stage.rng, 32), n_new, **sampling) for _ in range(n)]
    return _throughput(await _together(stage, bodies))


async def _shared_prefix(stage: Stage) -> dict[str, float]:
    """8 users arrive together with a prompt whose first 2,048 tokens are the same."""
    prefix = texts.words(stage.rng, stage.sized(2048, 256))
    bodies = [streamed(completion(prefix + texts.words(stage.rng, 32), 16)) for _ in range(8)]
    answers = await _together(stage, bodies)
    ttft = [a.ttft_s for a in answers]
    return {
        "ttft_p95_s": percentile(ttft, 0.95),
        "ttft_p50_s": percentile(ttft, 0.5),
        **_throughput(answers),
    }


async def _long_arrival(stage: Stage) -> dict[str, float]:
    """7 streams run; a prompt of 4,096 tokens arrives; all go on to their end."""
    n_new, n_long = stage.sized(192, 24), stage.sized(4096, 512)
    bodies = [streamed(completion(texts.words(stage.rng, 32), n_new)) for _ in range(7)]
    long = streamed(completion(texts.words(stage.rng, n_long), 16))
    answers = [Answer() for _ in bodies]
    tasks = [
        asyncio.create_task(post(stage.port, COMPLETIONS, body, answer))
        for body, answer in zip(bodies, answers, strict=True)
    ]
    while any(len(a.times) < 4 for a in answers) and not any(t.done() for t in tasks):
        await asyncio.sleep(0.01)
    newcomer = await post(stage.port, COMPLETIONS, long)
    await asyncio.gather(*tasks)
    start, first = newcomer.began, newcomer.times[0]
    itl = [gap for a in answers for gap in gaps(a.times, start, first)]
    n_tokens = newcomer.n_prompt + sum(t > start for a in [*answers, newcomer] for t in a.times)
    wall_s = max(a.ended for a in [*answers, newcomer]) - start
    return {
        "itl_p99_s": percentile(itl, 0.99),
        "itl_p50_s": percentile(itl, 0.5),
        "ttft_s": newcomer.ttft_s,
        "tokens_per_s": n_tokens / wall_s,
        "wall_s": wall_s,
    }


async def _agents(stage: Stage, *, n: int) -> dict[str, float]:
    """n conversations grow turn by turn: what was said, its answer, and 256 tokens more."""
    n_turns = stage.sized(8, 3)

    async def converse(seed: str) -> list[Answer]:
        rng = random.Random(seed)
        prompt = texts.words(rng, stage.sized(1024, 128))
        turns: list[Answer] = []
        for _ in range(n_turns):
            turns.append(await post(stage.port, COMPLETIONS, streamed(completion(prompt, 32))))
            prompt += turns[-1].text + texts.words(rng, stage.sized(256, 32))
        return turns

    seeds = [f"{stage.rng.random()}" for _ in range(n)]
    found = await asyncio.gather(*(converse(seed) for seed in seeds))
    later = [answer for turns in found for answer in turns[1:]]
    return {
        "ttft_p50_s": percentile([a.ttft_s for a in later], 0.5),
        "ttft_p95_s": percentile([a.ttft_s for a in later], 0.95),
        "cached": sum(a.n_cached or 0 for a in later) / sum(a.n_prompt for a in later),
        **_throughput([answer for turns in found for answer in turns]),
    }


async def _typing(stage: Stage) -> dict[str, float]:
    """2 typists: each keystroke asks for a completion in the middle and cancels the last one."""
    n_lines, n_keys, pause_s = stage.sized(5, 2), 12, 0.12

    async def type_lines(rng: random.Random) -> list[Answer]:
        suffix, before = texts.words(rng, 200), texts.words(rng, 300)
        finals: list[Answer] = []
        for _ in range(n_lines):
            running: asyncio.Task[Answer] | None = None
            for key in texts.words(rng, n_keys // 4):
                before += key
                if running is not None:
                    await _cancel(running)
                prompt = f"[SUFFIX]{suffix}[PREFIX]{before}"
                body = streamed(completion(prompt, 16))
                running = asyncio.create_task(post(stage.port, COMPLETIONS, body))
                await asyncio.sleep(pause_s)
            assert running is not None
            finals.append(await running)
        return finals

    rngs = [random.Random(stage.rng.random()) for _ in range(2)]
    found = [a for finals in await asyncio.gather(*map(type_lines, rngs)) for a in finals]
    return {
        "ttft_p50_s": percentile([a.ttft_s for a in found], 0.5),
        "ttft_p95_s": percentile([a.ttft_s for a in found], 0.95),
        "done_p95_s": percentile([a.ended - a.began for a in found], 0.95),
    }


async def _cancel(task: asyncio.Task[Answer]) -> None:
    task.cancel()
    done, _ = await asyncio.wait([task])
    for finished in done:
        if not finished.cancelled() and (error := finished.exception()) is not None:
            raise error


def _chat(words: str, n: int, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": words}], "max_tokens": n, **more}


def _held(prompt: str, n: int, schema: Mapping[str, object], **more: object) -> dict[str, object]:
    """Return the body of a request for JSON, in the words that both servers know. Not as chat:
    the peer's chat parser answers 500 when it does not like a constrained text."""
    return {"prompt": prompt, "max_tokens": n, "json_schema": schema, **more}


async def _json_cost(stage: Stage) -> dict[str, float]:
    """8 users get JSON; then free text of the same lengths, so both had the same company."""
    schema = texts.item_schema(stage.sized(6, 2))
    bodies = [_held(texts.words(stage.rng, 32), 2048, schema) for _ in range(8)]
    constrained = await _together(stage, bodies)
    lengths = [answer.n_answer for answer in constrained]
    free = await _together(stage, [completion(texts.words(stage.rng, 32), n) for n in lengths])
    figures, plain = _throughput(constrained), _throughput(free)
    return {
        **figures,
        "free_tokens_per_s": plain["tokens_per_s"],
        "cost": 1 - figures["tokens_per_s"] / plain["tokens_per_s"],
        "valid": _share_valid([(schema, answer) for answer in constrained]),
    }


async def _json_valid(stage: Stage) -> dict[str, float]:
    """Many outputs of several schemas, 8 at a time; half greedy, half sampled."""
    n = stage.sized(500, 16)
    queue = [(texts.SCHEMAS[i % len(texts.SCHEMAS)], i % 2 == 0) for i in range(n)]
    found: list[tuple[Mapping[str, object], Answer]] = []

    async def work() -> None:
        while queue:
            schema, greedy = queue.pop()
            body = _held(texts.words(stage.rng, 16), 512, schema, **(GREEDY if greedy else {}))
            found.append((schema, await post(stage.port, COMPLETIONS, body)))

    await asyncio.gather(*(work() for _ in range(8)))
    return {"valid": _share_valid(found), "outputs": len(found)}


def _share_valid(found: Sequence[tuple[Mapping[str, object], Answer]]) -> float:
    return sum(_is_valid(schema, answer.text) for schema, answer in found) / len(found)


def _is_valid(schema: Mapping[str, object], text: str) -> bool:
    try:
        value: Any = json.loads(text)
        jsonschema.validate(value, schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


async def _edit(stage: Stage) -> dict[str, float]:
    """One user has files edited: most of each answer stands in its prompt."""
    answers = []
    for _ in range(stage.sized(4, 1)):
        ask = texts.edit(stage.rng, stage.sized(8, 3))
        answers.append(await post(stage.port, CHAT, _chat(ask, 1024, **GREEDY)))
    return _throughput(answers)


async def _free_text(stage: Stage) -> dict[str, float]:
    """One user has code continued with default sampling."""
    answers = []
    for _ in range(stage.sized(4, 1)):
        body = completion(texts.code(stage.rng, 2), stage.sized(384, 64))
        answers.append(await post(stage.port, COMPLETIONS, body))
    return _throughput(answers)


def _throughputs() -> list[Scenario]:
    found = []
    for n in USERS:
        peers = (*BOTH, "llama-server:streams", *((PYTHON_PEER,) if n == 8 else ()))
        play = partial(_users, n=n, sampling={})
        about = f"{n} user{'s' * (n > 1)}, default sampling"
        found.append(Scenario(f"users-{n}", about, Q4_K_M, n, 256, play, peers))
    for n in USERS:
        play = partial(_users, n=n, sampling=GREEDY)
        about = f"{n} user{'s' * (n > 1)}, greedy; no drafts, as random weights repeat themselves"
        found.append(Scenario(f"greedy-{n}", about, Q4_K_M, n, 256, play, (NO_DRAFTS, PEER)))
    for name, model in (("q4_0", Q4_0), ("pocket", "pocket")):
        play = partial(_users, n=8, sampling={})
        about = f"8 users, default sampling, {model}"
        found.append(Scenario(f"{name}-8", about, model, 8, 256, play))
    return found


SCENARIOS: tuple[Scenario, ...] = (
    *_throughputs(),
    Scenario("shared-prefix", "8 users share a 2k prefix", Q4_K_M, 8, 2304, _shared_prefix),
    Scenario("long-arrival", "a 4k prompt, 7 users decode", Q4_K_M, 8, 4352, _long_arrival),
    Scenario("agent", "one conversation of 8 turns", Q4_K_M, 4, 3584, partial(_agents, n=1)),
    Scenario("agents", "6 conversations, 4 sequences", Q4_K_M, 4, 3584, partial(_agents, n=6)),
    Scenario("typing", "2 typists, cancel on each key", Q4_K_M, 4, 1024, _typing),
    Scenario("json-cost", "8 users, JSON schema", Q4_K_M, 8, 2304, _json_cost),
    Scenario("json-valid", "outputs that hold", Q4_K_M, 8, 1024, _json_valid, max_rounds=1),
    Scenario("edit", "rename in a file, greedy", "pocket", 4, 4096, _edit, (OURS, NO_DRAFTS, PEER)),
    Scenario(
        "free-text", "code, default sampling", "pocket", 4, 4096, _free_text,
        (OURS, NO_DRAFTS, PEER),
    ),
)  # fmt: skip
