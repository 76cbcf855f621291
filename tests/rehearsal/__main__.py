"""Walk the whole road: python -m tests.rehearsal [--model pocket:Q8_0] [--work DIR]

create -> a FAT32 image -> a namespace with loopback only, empty home, no compiler -> one command
-> an openai client is answered. Prints time, the most room that was taken, and bytes written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rehearsal.room import taken
from tests.rehearsal.stick import read_stick, write_stick
from tests.support.cli import ROOT, SOURCES, Cli

NAMESPACE = (
    "unshare", "--user", "--map-user=1000", "--map-group=1000", "--keep-caps", "--net", "--mount",
)  # fmt: skip
"""An ordinary user, who may still bring up loopback and mount the stick."""


def main() -> int:
    """Run and print. Returns 0 when a client was answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket:Q8_0")
    parser.add_argument("--work", type=Path, help="folder to work in; kept afterwards")
    parser.add_argument("--store", type=Path, help="a store that holds the model's file already")
    parser.add_argument("--wait", type=float, default=300.0, help="seconds until the answer")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="edgekit-rehearsal-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        found = rehearse(work, given.model, given.wait, given.store)
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(found, indent=2))
    return 0


def rehearse(work: Path, model: str, wait_s: float, store: Path | None = None) -> dict[str, object]:
    """Walk the road in `work`; return what was seen. Raises AssertionError where it ends."""
    office = Cli(work, {"EDGEKIT_STORE": str(store)} if store else {})
    bundle = work / "bundle"
    found: dict[str, object] = {"model": model}
    if not (work / "ops.pem").exists():
        office.json("bundle", "keygen", "ops")
    # In a folder that was kept, a bundle that is there is not made again.
    if not (bundle / "SHA256SUMS").exists():
        arguments = ["bundle", "create", model, "--for", "this", "--key", "ops.pem", "--no-verify"]
        with timed(found, "create_s"):
            run(office, *arguments, "--output", str(bundle))
    found["bundle_bytes"] = taken(bundle)
    with timed(found, "to_stick_s"):
        found["stick_bytes"] = write_stick(work / "stick.img", bundle)
    shutil.rmtree(bundle)
    with timed(found, "from_stick_s"):
        stick = read_stick(work / "stick.img", "bundle", work / "mnt")
    (work / "stick.img").unlink()
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=stick)
    assert checked.returncode == 0, "sha256sum finds a difference after the stick"
    path = os.pathsep.join(map(str, SOURCES))
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.rehearsal.inside", stick, work / "machine",
         work / "ops.pub", str(wait_s)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    sys.stderr.write(done.stdout + done.stderr)
    assert done.returncode == 0, "the other side did not answer"
    found |= json.loads(done.stdout.splitlines()[-1])
    return found


def run(cli: Cli, *arguments: str) -> None:
    """Run a command of any length; show what it says where it fails."""
    done = subprocess.run(
        cli.command(*arguments), env=cli.environment(), cwd=cli.home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def timed(found: dict[str, object], name: str) -> Iterator[None]:
    """Note how long the block took."""
    began = time.monotonic()
    yield
    found[name] = round(time.monotonic() - began, 1)


if __name__ == "__main__":
    sys.exit(main())
