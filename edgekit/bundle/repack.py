"""Make wheels of what is installed, and of edgekit itself: the very files that run here.

No index is asked. Equal installations give equal bytes: sorted entries, one time, one
compression. Each file is compared with the hash its installer noted, so a package that was
edited in place is refused.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import Final

from edgekit.errors import BadDataError, EngineFailedError, MissingInputError

EPOCH: Final = "315619200"
"""1980-01-02: the earliest day that zip files can say in every time zone."""
_TIME: Final = (1980, 1, 2, 0, 0, 0)
_INSTALLERS: Final = {"INSTALLER", "REQUESTED", "direct_url.json", "RECORD"}
_PYTHON = re.compile(rb"#!.*\bpython[0-9.]*\r?\n")


def repack(found: Distribution, folder: Path, extra: Mapping[str, bytes] | None = None) -> Path:
    """Write the wheel of an installed distribution into `folder`, with `extra` files by path.

    Raises BadDataError (`changed_package`) when its files are not as they were installed, or
    MissingInputError when the installer kept no record of them.
    """
    name = found.metadata["Name"]
    record, wheel = found.read_text("RECORD"), found.read_text("WHEEL")
    if record is None or wheel is None:
        raise MissingInputError(
            f"{name} was installed without a record of its files",
            code="no_record",
            hint=f"install it again with pip: pip install --force-reinstall {name}",
        )
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{found.version.replace('-', '_')}"
    entries = _entries(found, record, stem)
    entries |= {path: (data, 0o644) for path, data in (extra or {}).items()}
    tags = sorted(re.findall(r"^Tag:\s*(\S+)", wheel, re.MULTILINE))
    parts = [{tag.split("-")[i] for tag in tags} for i in range(3)]
    path = folder / f"{stem}-{'-'.join('.'.join(sorted(part)) for part in parts)}.whl"
    lines = io.StringIO()
    rows = csv.writer(lines, lineterminator="\n")
    info = next(entry.split("/")[0] for entry in entries if ".dist-info/" in entry)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for entry, (data, mode) in sorted(entries.items()):
            archive.writestr(_member(entry, mode), data)
            rows.writerow([entry, f"sha256={_hash(data)}", len(data)])
        rows.writerow([f"{info}/RECORD", "", ""])
        archive.writestr(_member(f"{info}/RECORD", 0o644), lines.getvalue())
    return path


def edgekit_wheel(folder: Path) -> Path:
    """Build edgekit's own wheel from the source tree it runs from, else from its installation.

    Raises EngineFailedError (`no_builder`, `build_failed`), or as `repack`.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        return repack(Distribution.from_name("edgekit"), folder)
    import importlib.util

    if importlib.util.find_spec("hatchling") is None:
        raise EngineFailedError(
            "edgekit runs from its source tree and hatchling, which packs it, is not installed",
            code="no_builder",
            hint="pip install hatchling",
        )
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder.resolve())],
        cwd=root,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
        check=False,
    )
    made = sorted(folder.glob("edgekit-*.whl"))
    if done.returncode or not made:
        raise EngineFailedError(
            f"edgekit's wheel could not be built: {done.stderr.strip()[-300:]}",
            code="build_failed",
            hint=f"try it by hand: cd {root} && python -m hatchling build -t wheel",
        )
    return made[0]


def _entries(found: Distribution, record: str, stem: str) -> dict[str, tuple[bytes, int]]:
    """Return content and mode by the path inside a wheel."""
    base = Path(str(found.locate_file(""))).resolve()
    scripts = {e.name for e in found.entry_points if e.group in ("console_scripts", "gui_scripts")}
    entries: dict[str, tuple[bytes, int]] = {}
    for path, digest, _ in csv.reader(record.splitlines()):
        own = path.split("/")[0].endswith(".dist-info") and path.split("/")[-1] in _INSTALLERS
        if own or path.endswith(".pyc"):
            continue
        place = Path(os.path.normpath(base / path))
        inside = _inside(place, base, scripts, stem)
        if inside is None:
            continue
        try:
            data, mode = place.read_bytes(), place.stat().st_mode
        except OSError as error:
            raise _changed(found, path, "is gone") from error
        if digest and digest != f"sha256={_hash(data)}":
            raise _changed(found, path, "is not as it was installed")
        if ".data/scripts/" in inside:
            # The installer put its own interpreter there; the next one does the same.
            data = _PYTHON.sub(b"#!python\n", data, count=1)
        entries[inside] = (data, 0o755 if mode & 0o100 else 0o644)
    return entries


def _inside(place: Path, base: Path, scripts: set[str], stem: str) -> str | None:
    """Return where a file lies in the wheel; None for a script that each installer writes."""
    if place.is_relative_to(base):
        return place.relative_to(base).as_posix()
    prefix = Path(sys.prefix).resolve()
    parts = place.relative_to(prefix).parts if place.is_relative_to(prefix) else place.parts[-2:]
    if parts[0] in ("bin", "Scripts"):
        name = parts[-1].removesuffix(".exe")
        known = name in scripts or re.sub(r"3(\.\d+)?$", "", name) in scripts
        return None if known else f"{stem}.data/scripts/{parts[-1]}"
    if parts[0] == "include" and len(parts) > 4:
        return f"{stem}.data/headers/{'/'.join(parts[4:])}"
    return f"{stem}.data/data/{'/'.join(parts)}"


def _member(name: str, mode: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _TIME)
    member.create_system = 3
    member.external_attr = (0o100000 | mode) << 16
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _changed(found: Distribution, path: str, what: str) -> BadDataError:
    name = found.metadata["Name"]
    return BadDataError(
        f"{name}: {path} {what}",
        code="changed_package",
        hint=f"install it again: pip install --force-reinstall --no-deps {name}=={found.version}",
    )
