"""The record as a few lines for a terminal: ceiling first, then the table, then the doubts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.report.clean import printable
from edgekit.report.record import Ceiling, Estimate, LatencyRecord, LatencyRow
from edgekit.units import (
    UNKNOWN,
    format_binary,
    format_bytes,
    format_gb_s,
    format_ms,
    format_percent,
    format_tok_s,
)

LABEL_WIDTH = 10
TABLE_WIDTH = 90


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table. `rank` 0 always stays; higher ranks leave first when narrow."""

    title: str
    cell: Callable[[LatencyRecord, LatencyRow], str]
    rank: int = 0


COLUMNS: tuple[Column, ...] = (
    Column("users", lambda _, row: f"{row.users}"),
    Column("TTFT p50", lambda _, row: format_ms(row.ttft_ms.p50)),
    Column("p95", lambda _, row: format_ms(row.ttft_ms.p95), rank=2),
    Column("ITL p50", lambda _, row: format_ms(row.itl_ms.p50)),
    Column("p99", lambda _, row: format_ms(row.itl_ms.p99), rank=2),
    Column("E2E p50", lambda _, row: format_ms(row.e2e_ms.p50), rank=3),
    Column("tok/s each", lambda _, row: speed(row.decode_tok_s_each)),
    Column("all", lambda _, row: speed(row.decode_tok_s), rank=1),
    Column("predicted", lambda record, row: predicted(record, row.users), rank=1),
)


def render_text(record: LatencyRecord, width: int = 100) -> str:
    """Return the report as plain text of at most `width` columns, without a final newline.

    A narrow terminal loses the less important columns, and a last line says so. Below 56
    columns the table alone is wider than asked: its last columns cannot be spared.
    """
    lines = [
        *_labelled("Ceiling", ceiling_line(record.ceiling, ceiling_share(record)), width),
        "",
        *_heading(record, width),
    ]
    columns = [column for column in COLUMNS if column.title != "predicted" or record.predicted]
    table = _table(record, columns)
    hidden: list[str] = []
    while len(table[0]) > width and any(column.rank for column in columns):
        least = max(columns, key=lambda column: column.rank)
        columns.remove(least)
        hidden.append(least.title)
        table = _table(record, columns)
    lines += table
    lines += _labelled("Memory", memory_line(record), width)
    for note in record.notes:
        lines += _labelled("Note", note, width)
    if hidden:
        text = f"too narrow for {', '.join(reversed(hidden))}: widen the terminal or use --json"
        lines += _labelled("Hidden", text, width)
    return "\n".join(printable(line).rstrip() for line in lines)


def speed(tok_s: float | None) -> str:
    """Tokens per second as the table shows them: three figures, no unit."""
    return format_tok_s(tok_s).removesuffix(" tok/s")


def predicted(record: LatencyRecord, users: int) -> str:
    """The plan's decode speed for all users together, with its error bar."""
    row = record.predicted.at(users) if record.predicted else None
    return UNKNOWN if row is None else estimate(row.decode_tok_s)


def estimate(value: Estimate | None) -> str:
    """ "33 ± 3" when the error bar is even, "33 (20 to 40)" when it is not, "33.0" without one.

    Figures are rounded to the size of the error: no decimals once it reaches 1 tok/s.
    """
    if value is None:
        return UNKNOWN
    if value.low is None or value.high is None:
        return speed(value.value)
    down, up = value.value - value.low, value.high - value.value
    digits = 0 if max(down, up) >= 1 else 1 if max(down, up) >= 0.1 else 2
    middle = f"{value.value:,.{digits}f}"
    if abs(down - up) <= 0.1 * max(down, up):
        return f"{middle} ± {(down + up) / 2:,.{digits}f}"
    return f"{middle} ({value.low:,.{digits}f} to {value.high:,.{digits}f})"


def ceiling_line(top: Ceiling | None, share: float | None = None) -> str:
    """Bandwidth / bytes per step = tok/s of one user, and the share of it that was measured."""
    if top is None or top.tok_s is None:
        return UNKNOWN
    line = (
        f"{speed(top.tok_s)} tok/s for one user: {format_gb_s(top.bandwidth_gb_s)} ÷ "
        f"{format_bytes(top.bytes_per_step)} per step"
    )
    return line if share is None else f"{line}; measured {format_percent(share)} of it"


def ceiling_share(record: LatencyRecord) -> float | None:
    """Measured decode speed of one user / the ceiling; None when either is unknown."""
    alone = next((row for row in record.rows if row.users == 1), None)
    if record.ceiling is None or not record.ceiling.tok_s or alone is None:
        return None
    return None if alone.decode_tok_s is None else alone.decode_tok_s / record.ceiling.tok_s


def memory_line(record: LatencyRecord) -> str:
    """ "20.7 GiB used, 20.6 GiB predicted"."""
    plan = record.predicted.peak_memory_bytes if record.predicted else None
    return f"{format_binary(record.peak_memory_bytes)} used, {format_binary(plan)} predicted"


def load_line(record: LatencyRecord) -> str:
    """ "prompt 512, answer 128 tokens, cache cold": what was really sent and received."""
    cold = record.cache_cold
    cache = "cache unknown" if cold is None else "cache cold" if cold else "cache partly warm"
    good = [row for row in record.rows if row.errors < row.requests]
    prompt = _span([(row.prompt_tokens_min, row.prompt_tokens_max) for row in good])
    answer = _span([(row.output_tokens_min, row.output_tokens_max) for row in good])
    return f"prompt {prompt}, answer {answer} tokens, {cache}"


def title(record: LatencyRecord) -> str:
    """ "NVIDIA A10, mistral-3-small Q5_K_M"; what is unknown is left out of the heading."""
    name = f"{record.model} {record.filetype}" if record.filetype else record.model
    return f"{record.device}, {name}" if record.device else name


def _span(lengths: list[tuple[int | None, int | None]]) -> str:
    known = [(low, high) for low, high in lengths if low is not None and high is not None]
    if not known or len(known) < len(lengths):
        return UNKNOWN
    low, high = min(low for low, _ in known), max(high for _, high in known)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _heading(record: LatencyRecord, width: int) -> list[str]:
    left, right = f"Latency, {title(record)}", load_line(record)
    if len(left) + 3 + len(right) > width:
        return [*_wrap(left, width), *_wrap(f"  {right}", width)]
    gap = max(3, min(width, TABLE_WIDTH) - len(left) - len(right))
    return [f"{left}{'':{gap}}{right}"]


def _table(record: LatencyRecord, columns: list[Column]) -> list[str]:
    cells = [[column.title for column in columns]]
    cells += [[column.cell(record, row) for column in columns] for row in record.rows]
    if record.errors:
        for line, row in zip(cells, [None, *record.rows], strict=True):
            line.append("errors" if row is None else f"{row.errors} of {row.requests}")
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [
        "  " + "   ".join(cell.rjust(size) for cell, size in zip(line, widths, strict=True))
        for line in cells
    ]


def _labelled(label: str, text: str, width: int) -> list[str]:
    first, *more = _wrap(text, width - LABEL_WIDTH)
    return [f"{label:<{LABEL_WIDTH}}{first}", *(f"{'':<{LABEL_WIDTH}}{line}" for line in more)]


def _wrap(text: str, width: int) -> list[str]:
    """Break at spaces; a word longer than the line is split, never cut off."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        line = word
    return [*lines, line]
