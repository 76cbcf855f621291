"""`make bench-serve`: our server beside its peers, interleaved; see README.md."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.serve import bare, machine, models, report, settings
from tests.benchmarks.serve.client import RefusedError, get, post
from tests.benchmarks.serve.contenders import Contender, contender
from tests.benchmarks.serve.figures import Run, judge, orders
from tests.benchmarks.serve.process import Running, running
from tests.benchmarks.serve.scenarios import (
    BOTH,
    COMPLETIONS,
    Q4_K_M,
    SCENARIOS,
    Scenario,
    Stage,
    completion,
)
from tests.benchmarks.serve.settings import Options, Setup
from tests.benchmarks.serve.targets import TARGETS

BARE = {
    "cold-start": ("spawn to ready", bare.cold_start, None),
    "memory": ("buffers by llama.cpp's log, and peak RSS", bare.memory, 1),
}
PULSE_S = 0.7
"""An engine's own totals are at most this old."""
FAILURES = (RefusedError, RuntimeError, OSError, TimeoutError, ValueError, IndexError)
"""What one run may fail with; the others go on."""


@dataclass(slots=True)
class Record:
    """Everything that goes into the JSON."""

    runs: list[Run] = field(default_factory=list)
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, run: Run) -> None:
        self.runs.append(run)
        said = run.error or "  ".join(f"{k}={v:.4g}" for k, v in run.figures.items())
        print(f"    {run.scenario} {run.round} {run.server}: {said}", file=sys.stderr, flush=True)


async def main() -> None:
    options = settings.from_environment()
    folder = options.cache / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine.machine(), "versions": machine.versions(options)}
    print(json.dumps(facts, indent=2))
    record = Record()
    for scenario in SCENARIOS:
        if options.wants(scenario.name):
            await _timed(record, scenario.name, _live(scenario, options, folder, record))
    for name in BARE:
        if options.wants(name):
            await _timed(record, name, _bare(name, options, folder, record))
    verdicts = [judge(target, record.runs) for target in TARGETS]
    print("\n".join(report.targets(verdicts)))
    path = options.cache / f"serve-{time.strftime('%Y%m%d-%H%M%S')}.json"
    whole = {
        **facts,
        "options": asdict(options),
        **asdict(record),
        "targets": [asdict(verdict) for verdict in verdicts],
    }
    path.write_text(json.dumps(whole, indent=1, default=str))
    print(f"\nwritten to {path}")


async def _timed(record: Record, name: str, work: Any) -> None:
    began = time.perf_counter()
    await work
    record.seconds[name] = time.perf_counter() - began
    print(f"  ({record.seconds[name]:.0f} s)", flush=True)


def _contenders(names: Sequence[str], options: Options) -> list[Contender]:
    """Return those that can run; say which cannot."""
    found = [contender(name, options) for name in options.servers or names]
    for missing in (c for c in found if c.program is None):
        print(f"  {missing.name} was not found; see tests/benchmarks/serve/README.md")
    return [c for c in found if c.program is not None]


async def _live(scenario: Scenario, options: Options, folder: Path, record: Record) -> None:
    """Start every server of a scenario, let them take turns, stop them all."""
    setup = _setup(scenario.model, scenario.n_seq, scenario.longest, options)
    found = _contenders(scenario.servers, options)
    async with contextlib.AsyncExitStack() as stack:
        servers: dict[str, Running] = {}
        for one in found:
            try:
                server = await stack.enter_async_context(running(one, setup, folder))
                await _warm(server, scenario.n_seq)
            except FAILURES as error:
                record.add(Run(scenario.name, one.name, -1, error=f"did not start: {error}"))
                continue
            servers[one.name] = server
            record.servers[f"{scenario.name} {one.name}"] = _about(server)
        n_rounds = min(options.n_pairs, scenario.max_rounds or options.n_pairs)
        for number, order in enumerate(orders(list(servers), n_rounds)):
            for name in order:
                rng = random.Random(f"{scenario.name} {number}")
                stage = Stage(servers[name].port, rng, options.quick)
                record.add(await _measured(scenario, servers[name], stage, number))
    _show(scenario.name, scenario.about, found, record)


async def _warm(server: Running, n_seq: int) -> None:
    bodies = [completion(f" warm up{' so' * i}", 8) for i in range(n_seq)]
    await asyncio.gather(*(post(server.port, COMPLETIONS, body) for body in bodies))


async def _measured(scenario: Scenario, server: Running, stage: Stage, number: int) -> Run:
    before, cpu_s, others_s = await _totals(server), server.cpu_s(), machine.others_cpu_s()
    try:
        figures = dict(await scenario.play(stage))
    except FAILURES as error:
        return Run(scenario.name, server.name, number, error=f"{type(error).__name__}: {error}")
    figures["cpu_s"] = server.cpu_s() - cpu_s
    figures["others_cpu_s"] = machine.others_cpu_s() - others_s - figures["cpu_s"]
    if before is not None and (after := await _totals(server)) is not None:
        steps, decode_s, busy_s = (b - a for a, b in zip(before, after, strict=True))
        if steps and busy_s:
            figures["overhead"] = 1 - decode_s / busy_s
            figures["outside_us"] = (busy_s - decode_s) / steps * 1e6
    return Run(scenario.name, server.name, number, figures)


async def _totals(server: Running) -> tuple[float, float, float] | None:
    """Return our engine's steps, seconds in llama_decode, and seconds in steps."""
    if server.contender.kind != "edgekit":
        return None
    await asyncio.sleep(PULSE_S)
    _, body = await get(server.port, "/metrics")
    lines = (line.partition(" ") for line in body.decode().splitlines())
    found = {name: number for name, _, number in lines}
    names = ("steps_total", "decode_seconds_total", "busy_seconds_total")
    values = [float(found.get(f"edgekit_engine_{name}", 0)) for name in names]
    return values[0], values[1], values[2]


async def _bare(name: str, options: Options, folder: Path, record: Record) -> None:
    about, play, max_rounds = BARE[name]
    setup = _setup(Q4_K_M, 8, 1024, options)
    found = {one.name: one for one in _contenders(BOTH, options)}
    n_rounds = min(options.n_pairs, max_rounds or options.n_pairs)
    for number, order in enumerate(orders(list(found), n_rounds)):
        for server in order:
            try:
                run = Run(name, server, number, await play(found[server], setup, folder))
            except FAILURES as error:
                run = Run(name, server, number, error=f"{type(error).__name__}: {error}")
            record.add(run)
    _show(name, about, list(found.values()), record)


def _setup(model: str, n_seq: int, longest: int, options: Options) -> Setup:
    path = models.model_path(model, options.cache)
    return Setup(path, n_seq=n_seq, longest=longest, n_threads=options.n_threads)


def _about(server: Running) -> Mapping[str, Any]:
    return {
        "command": server.command,
        "env": dict(server.contender.env),
        "libraries": server.libraries(),
        "said": server.log.read_text(errors="replace")[:4000],
    }


def _show(name: str, about: str, found: Sequence[Contender], record: Record) -> None:
    runs = [run for run in record.runs if run.scenario == name]
    names = [one.name for one in found]
    print("\n".join(report.table(f"{name}: {about}", names, runs)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
