"""Figures as people read them: bytes, GiB, tokens per second, milliseconds, counts.

Pure. Decimal units (kB, MB, GB: powers of 1000) describe files and downloads, binary units (KiB,
MiB, GiB: powers of 1024) describe memory; the two are never mixed in one figure. Every formatter
takes None for "unknown" and shows it as "–".
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from edgekit.errors import UsageError

UNKNOWN: Final = "–"
KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3
GB: Final = 1000**3

_DECIMAL: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_FACTORS: Final[dict[str, int]] = {
    "": 1,
    **{unit.lower(): 1000**power for power, unit in enumerate(_DECIMAL)},
    **{unit.lower(): 1024**power for power, unit in enumerate(_BINARY)},
}
_QUANTITY: Final = re.compile(r"(\d[\d_]{0,23}(?:\.\d{1,12})?)\s*([A-Za-z]*)", re.ASCII)
_TOKENS: Final = re.compile(r"(\d{1,3}(?:,\d{3}){1,5}|\d[\d_]{0,17})\s*([kK]?)", re.ASCII)


def format_bytes(n_bytes: float | None, digits: int = 1) -> str:
    """Decimal size of a file or a transfer: 16_800_000_000 -> "16.8 GB", 512 -> "512 B"."""
    return _scaled(n_bytes, 1000, _DECIMAL, digits)


def format_binary(n_bytes: float | None, digits: int = 1) -> str:
    """Binary size in the largest fitting unit: 134_217_728 -> "128.0 MiB"."""
    return _scaled(n_bytes, 1024, _BINARY, digits)


def format_gib(n_bytes: float | None, digits: int = 1) -> str:
    """Memory in GiB, always GiB so that columns line up: 24_159_191_040 -> "22.5 GiB"."""
    return UNKNOWN if n_bytes is None else f"{n_bytes / GIB:,.{digits}f} GiB"


def format_rate(bytes_per_s: float | None, digits: int = 1) -> str:
    """Transfer rate in decimal units: 41_000_000 -> "41.0 MB/s"."""
    return UNKNOWN if bytes_per_s is None else f"{format_bytes(bytes_per_s, digits)}/s"


def format_gb_s(gb_per_s: float | None, digits: int = 0) -> str:
    """Memory bandwidth, given in 10^9 bytes per second: 41.2 -> "41 GB/s"."""
    return UNKNOWN if gb_per_s is None else f"{gb_per_s:,.{digits}f} GB/s"


def format_tok_s(tokens_per_s: float | None) -> str:
    """Token rate with three figures: 31.84 -> "31.8 tok/s", 1180.2 -> "1,180 tok/s"."""
    return UNKNOWN if tokens_per_s is None else f"{_three_figures(tokens_per_s)} tok/s"


def format_ms(milliseconds: float | None) -> str:
    """Latency in milliseconds with three figures: 0.42 -> "0.42 ms", 1190.4 -> "1,190 ms"."""
    return UNKNOWN if milliseconds is None else f"{_three_figures(milliseconds)} ms"


def format_count(n: int | None) -> str:
    """An integer with thousands separators: 32768 -> "32,768"."""
    return UNKNOWN if n is None else f"{n:,}"


def format_percent(fraction: float | None, digits: int = 0) -> str:
    """A share of one: 0.19 -> "19 %"."""
    return UNKNOWN if fraction is None else f"{fraction * 100:.{digits}f} %"


def format_duration(seconds: float | None) -> str:
    """Wall time as minutes:seconds or hours:minutes:seconds: 372 -> "6:12", 3675 -> "1:01:15"."""
    if seconds is None:
        return UNKNOWN
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def parse_bytes(text: str) -> int:
    """Read a size: "22GiB", "16.8 GB", "512 MiB", "1048576" (bytes) -> bytes.

    Fractions are computed exactly and rounded to the nearest byte. A bare "G" or "M" is refused,
    because half of all tools mean 1000 by it and the other half 1024.

    Raises:
        UsageError: not a size, negative, or a unit that could mean two things.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match.group(2).lower() not in _FACTORS:
        raise _not_a_size(text, match)
    exact = Decimal(match.group(1).replace("_", "")) * _FACTORS[match.group(2).lower()]
    return int(exact.to_integral_value(rounding=ROUND_HALF_EVEN))


def parse_tokens(text: str) -> int:
    """Read a token count: "32768", "32,768", "32_768" or "32k"; here k is 1024, as for contexts.

    Raises:
        UsageError: not a whole, positive number of tokens.
    """
    match = _TOKENS.fullmatch(text.strip())
    count = int(re.sub("[,_]", "", match.group(1))) if match else 0
    if match is None or count == 0:
        raise UsageError(
            f"{text!r} is not a number of tokens",
            code="bad_token_count",
            hint="write a whole number such as 32768, or 32k",
        )
    return count * (1024 if match.group(2) else 1)


def _not_a_size(text: str, match: re.Match[str] | None) -> UsageError:
    number, unit = match.groups() if match is not None else ("", "")
    hint = "write a number and a unit, such as 22GiB, 16.8GB or 512MiB"
    if unit.upper() in {"K", "M", "G", "T", "P"}:
        decimal = "k" if unit.upper() == "K" else unit.upper()
        hint = f"write {number}{unit.upper()}iB (1024) or {number}{decimal}B (1000)"
    return UsageError(f"{text!r} is not a size", code="bad_size", hint=hint)


def _scaled(n_bytes: float | None, step: int, units: tuple[str, ...], digits: int) -> str:
    if n_bytes is None:
        return UNKNOWN
    value, power = float(n_bytes), 0
    # Rounding first keeps 999,999 bytes from reading "1000.0 kB".
    while power + 1 < len(units) and round(abs(value), digits if power else 0) >= step:
        value /= step
        power += 1
    return f"{value:,.{digits if power else 0}f} {units[power]}"


def _three_figures(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 99.95 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
