"""Wall time of a second `edgekit deploy pocket`, from process start to the first token."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import Cli, free_port

RUNS = 5
TARGET_S = 10.0

pytestmark = pytest.mark.bench


def deploy(cli: Cli) -> tuple[float, str]:
    """Deploy and stop; return the seconds to the first token and the line of the quantize step."""
    began = time.perf_counter()
    step, seconds = "", None
    with subprocess.Popen(
        cli.command("deploy", "pocket", "--port", str(free_port()), "--no-measure"),
        env=cli.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("  quantize"):
                step = " ".join(line.split())
            # Printed once the endpoint has answered a request for one token.
            if "first token after" in line:
                seconds = time.perf_counter() - began
                process.terminate()
    assert seconds is not None
    return seconds, step


def test_second_deploy_to_first_token(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    first, made = deploy(cli)
    again = [deploy(cli) for _ in range(RUNS)]
    assert all("store hit" in step for _, step in again)
    times = [seconds for seconds, _ in again]
    middle = statistics.median(times)
    print(f"\n  first deploy     {first:5.2f} s   {made}")
    print(f"  second deploy    {middle:5.2f} s   {again[-1][1]}")
    print(
        f"  {RUNS} runs {min(times):.2f} to {max(times):.2f} s; {middle / TARGET_S:.0%} of target"
    )
