"""Formatting and reading of sizes, rates and counts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import units
from edgekit.errors import UsageError


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (units.format_bytes, 16_800_000_000, "16.8 GB"),
        (units.format_bytes, 512, "512 B"),
        (units.format_bytes, 0, "0 B"),
        (units.format_bytes, 999, "999 B"),
        (units.format_bytes, 1000, "1.0 kB"),
        (units.format_bytes, 999_949, "999.9 kB"),
        (units.format_bytes, 999_999, "1.0 MB"),
        (units.format_bytes, 47.1e9, "47.1 GB"),
        (units.format_binary, 134_217_728, "128.0 MiB"),
        (units.format_binary, 1023, "1,023 B"),
        (units.format_gib, 24_159_191_040, "22.5 GiB"),
        (units.format_gib, 0, "0.0 GiB"),
        (units.format_gib, 1024**4, "1,024.0 GiB"),
        (units.format_rate, 41_000_000, "41.0 MB/s"),
        (units.format_gb_s, 41.2, "41 GB/s"),
        (units.format_tok_s, 31.84, "31.8 tok/s"),
        (units.format_tok_s, 1180.2, "1,180 tok/s"),
        (units.format_tok_s, 0.4567, "0.46 tok/s"),
        (units.format_ms, 0.42, "0.42 ms"),
        (units.format_ms, 9.996, "10.0 ms"),
        (units.format_ms, 99.97, "100 ms"),
        (units.format_ms, 1190.4, "1,190 ms"),
        (units.format_count, 32768, "32,768"),
        (units.format_percent, 0.19, "19 %"),
        (units.format_duration, 4, "0:04"),
        (units.format_duration, 372, "6:12"),
        (units.format_duration, 3675.4, "1:01:15"),
        (units.format_duration, 59.7, "1:00"),
    ],
)
def test_format(function: Callable[[float], str], value: float, expected: str) -> None:
    assert function(value) == expected


@pytest.mark.parametrize(
    "function",
    [getattr(units, name) for name in dir(units) if name.startswith("format_")],
)
def test_unknown_is_a_dash(function: Callable[[None], str]) -> None:
    assert function(None) == "–"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22GiB", 22 * 1024**3),
        ("16.8 GB", 16_800_000_000),
        (" 512 mib ", 512 * 1024**2),
        ("1048576", 1_048_576),
        ("1_000B", 1000),
        ("0.1KiB", 102),
        ("3.9gb", 3_900_000_000),
    ],
)
def test_parse_bytes(text: str, expected: int) -> None:
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GB", "1e9", "12 parsecs", "1.5.2GB", "٣GB", "22G", "9" * 5000]
)
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_bytes(text)
    assert caught.value.code == "bad_size"
    assert caught.value.hint


def test_a_bare_g_is_refused_with_both_readings() -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_bytes("22G")
    assert caught.value.hint == "write 22GiB (1024) or 22GB (1000)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("32768", 32768), ("32,768", 32768), ("32_768", 32768), ("32k", 32768), ("8K", 8192)],
)
def test_parse_tokens(text: str, expected: int) -> None:
    assert units.parse_tokens(text) == expected


@pytest.mark.parametrize("text", ["", "0", "3,2768", "1.5k", "-4", "many", "32M", "9" * 5000])
def test_parse_tokens_refuses(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_tokens(text)


@given(st.integers(min_value=0, max_value=10**16))
def test_a_size_survives_writing_and_reading(n_bytes: int) -> None:
    assert units.parse_bytes(f"{n_bytes}B") == n_bytes
    shown = units.format_bytes(n_bytes, 3).replace(",", "")
    assert units.parse_bytes(shown) == pytest.approx(n_bytes, rel=1e-3)


@given(st.text(max_size=20))
def test_reading_any_text_gives_a_size_or_a_usage_error(text: str) -> None:
    for parse in (units.parse_bytes, units.parse_tokens):
        with contextlib.suppress(UsageError):
            assert parse(text) >= 0
