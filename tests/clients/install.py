"""Install clients from their registries into a cache folder, once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.clients.agents import NODE, PYTHON, Agent


def installed(agents: Iterable[Agent]) -> Path:
    """Return the folder that has them all; what is missing is installed. 1.3 GB for all."""
    folder = Path(os.environ.get("EDGEKIT_CLIENTS") or Path.home() / ".cache/edgekit-clients")
    (folder / "homes").mkdir(parents=True, exist_ok=True)
    wanted = list(agents)
    missing = [
        f"{agent.package}@{agent.version}"
        for agent in wanted
        if agent.registry == NODE
        and not (folder / "node_modules" / agent.package / "package.json").is_file()
    ]
    if missing:
        npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
        subprocess.run([*npm, *missing], check=True)
    for agent in wanted:
        venv = folder / agent.package
        if agent.registry == PYTHON and not (venv / "ready").is_file():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            pip = [str(venv / "bin/pip"), "install", "--quiet"]
            subprocess.run([*pip, f"{agent.package}=={agent.version}"], check=True)
            (venv / "ready").touch()
    return folder
