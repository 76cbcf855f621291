"""A FAT32 image that stands for a stick: files go in and come out as they would on a real one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

ROOM: Final = 1.03
"""FAT's tables and the rest of each cluster, beside the bytes themselves."""

MIB: Final = 1 << 20


def write_stick(image: Path, folder: Path) -> int:
    """Make a FAT32 image that holds `folder`; return the bytes that the image takes on disk."""
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    kib = max(int(size * ROOM) + 8 * MIB, 64 * MIB) // 1024
    _run("mkfs.vfat", "-F", "32", "-C", str(image), str(kib))
    _run("mcopy", "-s", "-Q", "-i", str(image), str(folder), "::/")
    return image.stat().st_blocks * 512


def read_stick(image: Path, name: str, target: Path) -> Path:
    """Copy `name` out of the image, with the names that FAT made of it; return where it lies.

    Mounting needs rights that a container does not have; mtools reads the same file system.
    """
    target.mkdir(parents=True, exist_ok=True)
    _run("mcopy", "-s", "-Q", "-n", "-i", str(image), f"::/{name}", str(target))
    return target / name


def _run(*command: str) -> None:
    # mtools takes file names for those of a code page without this.
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{command[0]}: {done.stderr}{done.stdout}"
