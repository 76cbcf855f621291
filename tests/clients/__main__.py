"""Run real clients against a real server, in a network namespace with loopback only.

    make clients        or: python -m tests.clients [CLIENT...]

Each is configured by `edgekit connect` where it has a file for that, then does two things.
**chat**: one question to pocket's weights. **tools**: three chained tool calls. Libraries bring
pocket's own tools, and pocket makes the calls. Agents bring theirs, which pocket was never taught:
there the engine child is a script (tests/support/stub_engine.py) that says what a large model
would; the front, its dialects and the client are the real ones. A run is good when the client ends
well, all three results came back to the model and the server answered every request with 2xx.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.clients import install, runs, space
from tests.clients.agents import AGENTS, CHAT, TOOLS, Agent

SCENARIOS = (CHAT, TOOLS)


def main(names: list[str]) -> int:
    """Return 0 when every client did all."""
    if os.environ.get(space.INSIDE) is None:
        folder = install.installed(AGENTS[name] for name in names)
        return space.enter(names, folder)
    space.raise_loopback()
    folder = Path(os.environ[space.INSIDE])
    good = True
    rows = [f"| client | {' | '.join(SCENARIOS)} |", f"|---|{'---|' * len(SCENARIOS)}"]
    for name in names:
        cells = []
        for scenario in SCENARIOS:
            found = _once(AGENTS[name], scenario, folder)
            good = good and not found.why
            cells.append("no" if found.why else f"yes, {found.seconds:.1f} s")
            print(f"{name} {scenario}: {cells[-1]} {found.why}", flush=True)
        rows.append(f"| {name} {AGENTS[name].version} | {' | '.join(cells)} |")
    print("\n" + "\n".join(rows))
    return 0 if good else 1


def _once(agent: Agent, scenario: str, folder: Path) -> runs.Outcome:
    # Not under /tmp: codex refuses to work there.
    home = Path(tempfile.mkdtemp(prefix=f"{agent.name}-", dir=folder / "homes"))
    try:
        return runs.run(agent, scenario, folder, home)
    finally:
        if "EDGEKIT_KEEP" not in os.environ:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:] or list(AGENTS)))
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
