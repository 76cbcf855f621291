"""Run a command and count: time, bytes that its tree wrote, the most room that a folder took."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a command. `written`: bytes given to files and pipes by it and its children."""

    name: str
    seconds: float
    written: int
    peak_bytes: int
    output: str


COUNTER = """
import subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
with open(sys.argv[1], "w") as out:
    out.write(open("/proc/self/io").read())
sys.exit(code)
"""
"""The kernel adds a child's figures to its parent's when the parent waits for it."""


def run(
    name: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    watched: Path,
    counts: Path,
    python: str,
) -> Run:
    """Run a command to its end. `watched` is the folder whose room is looked at meanwhile."""
    done = threading.Event()
    peak = [room(watched)]

    def look() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], room(watched))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    began = time.monotonic()
    found = subprocess.run(
        [python, "-c", COUNTER, str(counts), *command],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    assert found.returncode == 0, f"{name} ended with {found.returncode}:\n{found.stdout}"
    lines = dict(line.split(": ") for line in counts.read_text().splitlines())
    return Run(name, seconds, int(lines["wchar"]), max(peak[0], room(watched)), found.stdout)


def room(folder: Path) -> int:
    """Return the blocks that a folder takes; a file with two names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(path, name))
            except OSError:
                continue
            seen[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(seen.values())
