"""The other side: a machine with loopback only, an empty home, no compiler, and the stick.

Runs in a network namespace of its own. One command is given; then a client asks. Prints one JSON
line with what was seen, the last one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.rehearsal.room import Peak, taken, written

TOOLS = ("sh", "env", "uname", "python3", "ldconfig")
COMPILERS = ("cc", "gcc", "clang", "c++", "g++", "cmake", "ninja", "make", "rustc", "nvcc")


def main() -> int:
    """Run with: the stick's folder, the target's folder, the public key, seconds to wait."""
    stick, machine, key, wait_s = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    subprocess.run(["/usr/sbin/ip", "link", "set", "lo", "up"], check=True)
    assert not reachable(), "the namespace has a way out"
    # A mount of its own and read-only, as a stick is: no file can be linked across it.
    subprocess.run(["mount", "--bind", stick, stick], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", stick], check=True)
    tools, home = machine / "tools", machine / "home"
    home.mkdir(parents=True)
    tools.mkdir()
    for name in TOOLS:
        if found := shutil.which(name, path=f"{Path(sys.base_prefix)}/bin:/usr/bin:/bin:/sbin"):
            (tools / name).symlink_to(Path(found).resolve())
    assert not [c for c in COMPILERS if shutil.which(c, path=str(tools))]
    env = {"PATH": str(tools), "HOME": str(home), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "2"}
    command = ["python3", str(stick / "bootstrap" / "start.py"), "--trust", key, "--port", "8484"]
    before, began = written(), time.monotonic()
    with Peak(machine) as peak:
        started = subprocess.Popen(
            command, env=env, cwd=home, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        lines: list[tuple[float, str]] = []
        reader = threading.Thread(target=read, args=(started, lines, began), daemon=True)
        reader.start()
        try:
            model, answer = ask(started, float(wait_s))
            answered_s = time.monotonic() - began
            room = taken(machine)
        finally:
            started.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(60)
            started.kill()
            started.wait()
            reader.join(5)
            for at, line in lines:
                sys.stdout.write(f"{at:8.1f} s  {line}")
    print(
        json.dumps(
            {
                "command": " ".join(command),
                "answered_s": round(answered_s, 1),
                "model": model,
                "answer": answer,
                "peak_bytes": peak.bytes,
                "installed_bytes": room,
                "written_bytes": written() - before,
            }
        )
    )
    return 0


def read(process: subprocess.Popen[str], lines: list[tuple[float, str]], began: float) -> None:
    """Keep what the command prints, with the second it came."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.append((time.monotonic() - began, line))


def ask(process: subprocess.Popen[str], wait_s: float) -> tuple[str, str]:
    """Return the model's name and a text of it, asked as any program would ask."""
    import openai

    client = openai.OpenAI(base_url="http://127.0.0.1:8484/v1", api_key="none", max_retries=0)
    deadline = time.monotonic() + wait_s
    while True:
        assert process.poll() is None, f"the command ended with {process.returncode}"
        assert time.monotonic() < deadline, f"no answer within {wait_s:.0f} s"
        try:
            model = client.models.list().data[0].id
            done = client.completions.create(
                model=model, prompt="def add(a, b):\n    return", max_tokens=8, temperature=0
            )
            return model, done.choices[0].text
        except openai.OpenAIError:
            time.sleep(0.1)


def reachable() -> bool:
    """Say whether a packet could leave: there must not even be a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 53))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
