"""The text that pocket learns from: this Python's standard library, split once and for all.

Files are sorted by relative path; every 20th is held out and never trained on. Left out are
site-packages, lib2to3 and pydoc_data (generated text) and files that are not UTF-8.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_EVERY = 20
SKIPPED = ("site-packages", "lib2to3", "pydoc_data", "__pycache__")


@dataclass(frozen=True, slots=True)
class Source:
    path: str
    text: str
    held_out: bool


def load() -> list[Source]:
    """Return all files in order, each marked as held out or not."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, str]] = []
    for file in root.rglob("*.py"):
        relative = file.relative_to(root).as_posix()
        if any(part in SKIPPED for part in file.relative_to(root).parts):
            continue
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        found.append((relative, text))
    found.sort()
    return [Source(p, t, i % HELD_OUT_EVERY == 0) for i, (p, t) in enumerate(found)]


def manifest(sources: list[Source]) -> dict[str, object]:
    """Return what was read, a digest per file, and the bits per byte that xz needs held out."""
    held_out = "".join(s.text for s in sources if s.held_out).encode()
    train = "".join(s.text for s in sources if not s.held_out).encode()
    packed = lzma.compress(held_out, preset=9 | lzma.PRESET_EXTREME)
    known = _raw_size(train + held_out) - _raw_size(train)
    return {
        "python": sysconfig.get_python_version(),
        "held_out_every": HELD_OUT_EVERY,
        "held_out_bytes": len(held_out),
        "xz_bits_per_byte": round(8 * len(packed) / len(held_out), 4),
        "xz_bits_per_byte_given_train": round(8 * known / len(held_out), 4),
        "train_bytes": len(train),
        "files": {s.path: hashlib.sha256(s.text.encode()).hexdigest() for s in sources},
    }


def _raw_size(data: bytes) -> int:
    """Return what LZMA2 needs with a window that holds all of it: how alike the files are."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 64 << 20}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def write_manifest(path: Path) -> None:
    path.write_text(json.dumps(manifest(load()), indent=0, sort_keys=False) + "\n")
