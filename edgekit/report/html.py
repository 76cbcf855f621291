"""The record as one HTML page that asks the network for nothing: inline CSS and SVG, no script.

The page's own policy (`default-src 'none'`) would stop a browser from loading anything else.
"""

from __future__ import annotations

import re
from importlib.resources import files

from edgekit.report.charts import Bar, bar_chart, range_chart
from edgekit.report.markup import Markup, element, join, table
from edgekit.report.record import Estimate, LatencyRecord, LatencyRow, Percentiles
from edgekit.report.text import (
    ceiling_line,
    ceiling_share,
    load_line,
    memory_line,
    predicted,
    speed,
    title,
)
from edgekit.units import (
    GIB,
    MIB,
    UNKNOWN,
    format_binary,
    format_count,
    format_ms,
    format_percent,
    format_tok_s,
)

_UNIT_SPACE = re.compile(r"(?<=[0-9]) (?=(ms|tok/s)\b)")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_html(record: LatencyRecord) -> str:
    """Return the whole page, UTF-8 text that starts with the doctype."""
    css = files("edgekit.report").joinpath("style.css").read_text(encoding="utf-8")
    name = f"Latency: {title(record)}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="referrer", content="no-referrer"),
        element("title", name),
        element("style", Markup(css)),
    )
    body = element(
        "body",
        element("main", _header(record), _notes(record), _figures(record), _about(record)),
        element("footer", f"Written by edgekit, schema edgekit.bench/1. {record.created_at or ''}"),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _header(record: LatencyRecord) -> Markup:
    return element(
        "header",
        element("h1", title(record)),
        element("p", f"Latency under load: {load_line(record)}", class_="soft"),
        element("p", summary(record), class_="lead"),
        element("div", *(_tile(*tile) for tile in _tiles(record)), class_="tiles"),
    )


def summary(record: LatencyRecord) -> str:
    """Say the result in two sentences, from the fewest users to the most."""
    rows = [row for row in record.rows if row.ttft_ms.p50 is not None]
    if not rows:
        return "No request succeeded, so there is nothing to report."
    few, many = rows[0], rows[-1]
    text = (
        f"{_users(few.users).capitalize()}: first token after {format_ms(few.ttft_ms.p50)} "
        f"(median), then {format_tok_s(few.decode_tok_s_each)}."
    )
    if many is not few:
        text += (
            f" {_users(many.users).capitalize()} at once: {format_ms(many.ttft_ms.p50)}, then "
            f"{format_tok_s(many.decode_tok_s_each)} each and {format_tok_s(many.decode_tok_s)} "
            "together."
        )
    return _UNIT_SPACE.sub("\N{NO-BREAK SPACE}", text)


def _tiles(record: LatencyRecord) -> list[tuple[str, str, str]]:
    top, share = record.ceiling, ceiling_share(record)
    best = max((row.decode_tok_s for row in record.rows if row.decode_tok_s), default=None)
    plan = record.predicted.peak_memory_bytes if record.predicted else None
    requests = sum(row.requests for row in record.rows)
    reached = "bandwidth ÷ bytes per step" if share is None else f"{format_percent(share)} reached"
    return [
        ("Ceiling, one user", format_tok_s(top.tok_s if top else None), reached),
        ("Most together", format_tok_s(best), "decode, all users"),
        (
            "Peak memory",
            format_binary(record.peak_memory_bytes),
            f"{format_binary(plan)} predicted",
        ),
        ("Requests", format_count(requests), f"{format_count(record.errors)} failed"),
    ]


def _tile(name: str, figure: str, below: str) -> Markup:
    return element(
        "div", element("span", name), element("b", figure), element("span", below), class_="tile"
    )


def _notes(record: LatencyRecord) -> Markup | None:
    if not record.notes:
        return None
    return element(
        "section",
        element("h2", "Read this with the figures"),
        element("ul", *(element("li", note) for note in record.notes)),
        class_="notes",
    )


def _figures(record: LatencyRecord) -> Markup:
    rows = record.rows
    return element(
        "div",
        _spread("Time to first token", "Send to first token, by users at once.",
                [(row, row.ttft_ms) for row in rows]),
        _spread("Between tokens", "Gap between successive tokens of one answer (ITL).",
                [(row, row.itl_ms) for row in rows]),
        _throughput(record),
        _memory(record),
        _whole(record),
        _load(record),
        class_="charts",
    )  # fmt: skip


def _spread(name: str, below: str, rows: list[tuple[LatencyRow, Percentiles]]) -> Markup:
    chart = range_chart(
        [(_users(row.users), spread) for row, spread in rows],
        format_ms,
        f"{name} in milliseconds by number of users; the table below has the same figures",
    )
    figures = table(
        ["users", "p50", "p95", "p99", "samples"],
        [
            [f"{row.users}", format_ms(p.p50), format_ms(p.p95), format_ms(p.p99),
             format_count(p.samples)]
            for row, p in rows
        ],
        f"{name}, percentiles",
    )  # fmt: skip
    legend = join(
        _key(element("circle", cx=7, cy=7, r=5.5, class_="p50")), "p50",
        _key(element("line", x1=7, x2=7, y1=1, y2=13, class_="p95")), "p95",
        _key(element("circle", cx=7, cy=7, r=4.5, class_="p99")), "p99, milliseconds",
    )  # fmt: skip
    return _figure(name, below, legend, chart, figures)


def _throughput(record: LatencyRecord) -> Markup:
    guesses = (
        {row.users: row.decode_tok_s for row in record.predicted.rows} if record.predicted else {}
    )
    chart = bar_chart(
        [Bar(_users(row.users), row.decode_tok_s, guesses.get(row.users)) for row in record.rows],
        speed,
        "Decode speed of all users together, measured and predicted, in tokens per second; "
        "the table below has the same figures",
    )
    figures = table(
        ["users", "each", "all", "predicted", "difference"],
        [
            [f"{row.users}", speed(row.decode_tok_s_each), speed(row.decode_tok_s),
             predicted(record, row.users), _difference(row.decode_tok_s, guesses.get(row.users))]
            for row in record.rows
        ],
        "tok/s; predicted: all users together",
    )  # fmt: skip
    return _figure(
        "Decode speed", "All users together, tokens per second.", _bar_legend(), chart, figures
    )


def _memory(record: LatencyRecord) -> Markup:
    used = record.peak_memory_bytes
    plan = record.predicted.peak_memory_bytes if record.predicted else None
    unit, size = ("GiB", GIB) if max(used or 0, plan or 0) >= GIB else ("MiB", MIB)
    guess = None if plan is None else Estimate(plan / size)
    chart = bar_chart(
        [Bar("peak", None if used is None else used / size, guess)],
        lambda value: UNKNOWN if value is None else f"{value:,.1f} {unit}",
        f"Peak memory: {memory_line(record)}",
    )
    figures = table(
        ["memory", "measured", "predicted", "difference"],
        [["peak", format_binary(used), format_binary(plan),
          _difference(None if used is None else used / size, guess)]],
        "Peak resident memory of the server's processes",
    )  # fmt: skip
    return _figure("Memory", f"Peak, in {unit}.", _bar_legend(), chart, figures)


def _bar_legend() -> Markup:
    return join(
        _key(element("rect", x=1, y=2, width=12, height=10, class_="bar")), "measured",
        _key(element("path", d="M7 1l6 6l-6 6l-6 -6z", class_="predicted")), "predicted",
    )  # fmt: skip


def _figure(name: str, below: str, legend: Markup, chart: Markup, figures: Markup) -> Markup:
    caption = element(
        "figcaption",
        element("h2", name),
        element("p", below, class_="soft"),
        element("p", legend, class_="legend"),
    )
    return element("figure", caption, chart, figures)


def _key(shape: Markup) -> Markup:
    return element("svg", shape, viewBox="0 0 14 14", class_="key", aria_hidden="true")


def _whole(record: LatencyRecord) -> Markup:
    rows = [
        [
            f"{row.users}",
            *(format_ms(value) for value in (row.tpot_ms.p50, row.tpot_ms.p95, row.tpot_ms.p99)),
            *(format_ms(value) for value in (row.e2e_ms.p50, row.e2e_ms.p95, row.e2e_ms.p99)),
        ]
        for row in record.rows
    ]
    head = ["users", "TPOT p50", "p95", "p99", "E2E p50", "p95", "p99"]
    return element(
        "figure",
        element("figcaption", element("h2", "Whole requests")),
        table(head, rows, "Per output token (TPOT), end to end (E2E)"),
    )


def _load(record: LatencyRecord) -> Markup:
    rows = [
        [
            f"{row.users}",
            *(format_count(n) for n in (row.requests, row.errors)),
            *(format_count(n) for n in (row.prompt_tokens, row.output_tokens)),
            *(speed(value) for value in (row.prefill_tok_s, row.throughput_tok_s)),
        ]
        for row in record.rows
    ]
    head = ["users", "requests", "failed", "prompt", "answer", "prefill", "overall"]
    return element(
        "figure",
        element("figcaption", element("h2", "Load")),
        table(head, rows, "Lengths in tokens, speeds in tok/s"),
    )


def _about(record: LatencyRecord) -> Markup:
    facts = [
        ("Model", record.model),
        ("File type", record.filetype or UNKNOWN),
        ("Device", record.device or UNKNOWN),
        ("Context", "all sequences: " + format_count(record.n_ctx)),
        ("Ceiling", ceiling_line(record.ceiling, ceiling_share(record))),
        ("Ceiling basis", (record.ceiling.basis if record.ceiling else None) or UNKNOWN),
        ("Endpoint", record.endpoint or UNKNOWN),
        ("Plan", record.plan_digest or UNKNOWN),
        ("Begun", record.created_at or UNKNOWN),
    ]
    if record.predicted:
        basis = {e.basis for row in record.predicted.rows if (e := row.decode_tok_s) and e.basis}
        facts.append(("Prediction basis", "; ".join(sorted(basis)) or UNKNOWN))
    return join(
        element("section", element("h2", "What was measured"), _list(facts)),
        element("section", element("h2", "How"), _list(list(record.method)))
        if record.method
        else None,
    )


def _list(pairs: list[tuple[str, str]]) -> Markup:
    return element("dl", *(join(element("dt", k), element("dd", v)) for k, v in pairs))


def _users(n: int) -> str:
    return f"{n} user" if n == 1 else f"{n} users"


def _difference(measured: float | None, guess: Estimate | None) -> str:
    """Measured against predicted, signed: +4 % is more than predicted."""
    if measured is None or guess is None or guess.value == 0:
        return UNKNOWN
    return f"{100 * (measured / guess.value - 1):+.0f} %".replace("-", "−")
