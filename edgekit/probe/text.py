"""Two habits that every parser here shares: read what may not be there, trust no number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

# Up to 20 digits hold any 64-bit number; more is rubbish, and Python refuses thousands of them.
_WHOLE: Final = re.compile(r"[0-9]{1,20}")


def read_text(path: Path) -> str | None:
    """A small file's text; None when it is absent, unreadable or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def whole(text: object) -> int | None:
    """A whole number written in plain digits, spaces around it allowed; None for all else."""
    if not isinstance(text, str):
        return None
    word = text.strip()
    return int(word) if _WHOLE.fullmatch(word) else None
