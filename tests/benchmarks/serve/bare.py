"""What is measured by starting servers: cold start, and memory by llama.cpp's own log."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from pathlib import Path

from tests.benchmarks.serve.client import post
from tests.benchmarks.serve.contenders import Contender
from tests.benchmarks.serve.process import running
from tests.benchmarks.serve.scenarios import COMPLETIONS, completion
from tests.benchmarks.serve.settings import Setup

_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s+([\d.]+) MiB")


def buffers(log: str) -> dict[str, dict[str, int]]:
    """Return kind (model, KV, compute, output) -> device -> bytes from a log. Pure."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for device, kind, mib in _BUFFER.findall(log):
        found[kind][device] += round(float(mib) * 2**20)
    return {kind: dict(devices) for kind, devices in found.items()}


async def cold_start(contender: Contender, setup: Setup, folder: Path) -> dict[str, float]:
    """Spawn to a health check that says ready, and to the first answered token."""
    async with running(contender, setup, folder) as server:
        await post(server.port, COMPLETIONS, completion(" the", 1))
        first_s = time.perf_counter() - server.spawned
        return {"ready_s": server.ready_s, "first_token_s": first_s}


async def memory(contender: Contender, setup: Setup, folder: Path) -> dict[str, float]:
    """Bytes by kind from the log, and the peak RSS of the process tree after an answer."""
    async with running(contender, setup, folder, verbose=True) as server:
        await post(server.port, COMPLETIONS, completion(" the quick", 8))
        rss = server.peak_rss_bytes()
        found = buffers(_log(server.log))
    if not found:
        raise RuntimeError("its log says nothing about buffers")
    sums = {kind: sum(devices.values()) for kind, devices in found.items()}
    return {
        **{f"{kind.lower()}_bytes": n for kind, n in sums.items()},
        "repacked_bytes": _repacked(found.get("model", {})),
        "total_bytes": sum(sums.values()),
        "rss_peak_bytes": rss,
    }


def _log(path: Path) -> str:
    """Ours says the lines as JSON on its standard output; the peers write them as they are."""
    text = path.read_text(errors="replace")
    for line in text.splitlines():
        if line.startswith('{"reasons"'):
            return str(json.loads(line)["reasons"].get("buffers", ""))
    return text


def _repacked(devices: dict[str, int]) -> int:
    """Weights in a form made for this CPU; equal for two servers when both use it alike."""
    return sum(n for device, n in devices.items() if device in ("AMX", "CPU_REPACK"))
