"""One run of one client: a server, an empty home, the client's own configuration, a verdict."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from edgekit_server.app import Server
from tests.clients.agents import CHAIN, QUESTION, TOOLS, Agent, ShellTool
from tests.support.http_server import config_for, running
from tests.support.pocket import convert_pocket
from tests.support.stub_engine import Rule, StubEngine, said

TIMEOUT_S = 120
ASK = "Run three-steps please."
DONE = "All three steps are done."
MODEL = "edge-model"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went; `why` is empty for a good one."""

    why: str
    seconds: float


def run(agent: Agent, scenario: str, folder: Path, home: Path) -> Outcome:
    """Run a client once, in an empty home."""
    config, spawn = config_for(home / "model.gguf"), None
    engine = replace(config.engine, model_id=MODEL, n_ctx=32768, n_seq_max=2, n_threads=None)
    scripted = scenario == TOOLS and agent.shell is not None
    if scripted and agent.shell is not None:
        engine.model_path.write_bytes(b"GGUF")
        spawn = StubEngine(script(agent.shell), home / "stub.log", n_ctx_seq=131072).spawn
    else:
        engine = replace(engine, model_path=convert_pocket(home))
    question = QUESTION if scenario != TOOLS else ASK if scripted else CHAIN
    with running(replace(config, engine=engine), spawn) as server:
        began = time.monotonic()
        text, code = _client(agent, scenario == TOOLS, question, folder, home, server)
        last_word = DONE if scripted else "calls: 3" if scenario == TOOLS else ""
        return Outcome(_fault(server, text, code, last_word), time.monotonic() - began)


def script(shell: ShellTool) -> list[Rule]:
    """Return what the engine says: a call until three results are in the prompt, a last word.

    A step's result cannot be read off its command, so it is there only if the command was run.
    """

    def call(number: int) -> list[list[object]]:
        more = "".join(f', "{key}": "{value}"' for key, value in shell.more.items())
        start = f'{{"{shell.key}": "echo result-'
        return [
            ["[TOOL_CALLS]", True], [shell.name, False], ["[ARGS]", True], [start, False],
            [f"$(({number} * 111))", False], [f'"{more}}}', False],
        ]  # fmt: skip

    return [
        Rule("result-333", said(DONE)),
        Rule("result-222", call(3)),
        Rule("result-111", call(2)),
        Rule("three-steps", call(1)),
        Rule("", said("Hello.")),
    ]


def _client(
    agent: Agent, tools: bool, question: str, folder: Path, home: Path, server: Server
) -> tuple[str, int]:
    words = {
        "folder": folder, "home": home, "url": server.url, "model": MODEL, "here": HERE,
        "question": question,
    }  # fmt: skip

    def filled(parts: Sequence[str]) -> list[str]:
        return [part.format(**words) for part in parts]

    packages = os.pathsep.join(str(ROOT / p) for p in (".", "server", "quantize", "profiles"))
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb", "LANG": "C.UTF-8"}
    work = home / "work"
    work.mkdir()
    if agent.connect is not None:
        connect = [sys.executable, "-m", "edgekit", "connect", agent.connect]
        done = subprocess.run(
            [*connect, "--url", server.url, "--no-test"],
            env={**env, "PYTHONPATH": packages}, cwd=work, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            return f"connect: {done.stderr}", done.returncode
    argv = [*filled(agent.argv), *(filled(agent.tools_argv) if tools else [])]
    try:
        done = subprocess.run(
            argv, env={**env, **agent.env}, cwd=work, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return f"timed out: {error.stdout!r} {error.stderr!r}", 124
    return done.stdout + done.stderr, done.returncode


def _fault(server: Server, text: str, code: int, last_word: str) -> str:
    """Return what was wrong with a run; empty: nothing."""
    failed = [
        line
        for line in httpx.get(f"{server.url}/metrics").text.splitlines()
        if line.startswith("edgekit_requests_total{") and 'status="2' not in line
    ]
    said_ = text[-800:]
    if code != 0:
        return f"exit {code}: {said_}"
    if failed:
        return f"the server refused something, {failed}: {said_}"
    if not text.strip():
        return "it said nothing"
    return "" if last_word in text else f"it did not come to {last_word!r}: {said_}"
