"""The road of `make rehearse`, with what must hold of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.rehearsal.__main__ import NAMESPACE, rehearse


def walkable() -> bool:
    """Say whether this machine has FAT's tools and may make a namespace."""
    if not all(map(shutil.which, ("mkfs.vfat", "mcopy", "unshare", "sha256sum"))):
        return False
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not walkable(), reason="needs mtools, mkfs.vfat and user namespaces")
def test_one_command_after_the_stick_is_in(tmp_path: Path) -> None:
    found = rehearse(tmp_path, "pocket:Q8_0", 280)
    assert found["model"] == "pocket"
    assert "a, b" in str(found["answer"])
    # A stick takes little more than the files.
    assert int(str(found["stick_bytes"])) < int(str(found["bundle_bytes"])) * 1.05
