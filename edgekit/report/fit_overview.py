"""All verdicts of a record as one table that can be filtered and sorted, and two charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.report.fit_charts import Point, range_rows
from edgekit.report.fit_group import badge, pace
from edgekit.report.markup import Markup, element, join
from edgekit.units import GIB, UNKNOWN, format_ms

CHARTED: Final = 12
_ORDER: Final = {"fits": 0, "tight": 1, "no": 2}


def overview(record: Mapping[str, Any]) -> Markup:
    """The filter, the table and the charts of a record with more than one verdict."""
    firsts = [(i, record["rows"][g["first"]]) for i, g in enumerate(record["groups"])]
    firsts.sort(key=lambda pair: _rank(pair[1]))
    short = record["shortened"]
    figures = (("file type", "f"), ("context", "c"), ("memory, GiB", "m"), ("tok/s each", "s"))
    heads: list[tuple[str, str | None]] = [*_named(record), ("verdict", "v"), *figures]
    heads += [("first token", "t"), ("USD / M tokens", "u"), *([("why", "why")] if short else [])]
    caption = (
        "Best for each device; what fits stands first, the fastest on top. Memory: needed of what "
        "may be used. tok/s: for each user, low to high in brackets."
    )
    table = element(
        "table",
        element("caption", caption),
        element(
            "thead", element("tr", *(element("th", t, scope="col", class_=c) for t, c in heads))
        ),
        element("tbody", *(_row(record, i, row, short) for i, row in firsts)),
    )
    return element(
        "section",
        element("h2", "All verdicts"),
        _charts(record, [row for _, row in firsts]),
        _filter(),
        element("div", table, class_="scroll", tabindex="0", role="region",
                aria_label="All verdicts", id="overview"),
    )  # fmt: skip


def _rank(row: Mapping[str, Any]) -> tuple[int, float]:
    found = row["decode_tok_s"]
    return _ORDER[row["verdict"]], -(found["value"] if found else 0.0)


def _row(record: Mapping[str, Any], index: int, row: Mapping[str, Any], short: bool) -> Markup:
    main, cost = row["bytes"]["parts"][0], row["cost"]["usd_per_million_tokens"]
    model, device = names(record, row)
    needs = f"{main['total'] / GIB:,.1f}"
    needs += f" of {main['budget'] / GIB:,.1f}" if main["budget"] is not None else " of ?"
    found, first = row["decode_tok_s"], row["ttft_ms"]
    runs = row["verdict"] != "no"
    link = None if short else f"#g{index}"
    named = {"model": model, "device": device}
    (lead, _), *more = _named(record)
    cells: list[Markup] = [
        element("th", element("a", named[lead], href=link) if link else named[lead], scope="row"),
        *(element("td", named[name], class_=kind) for name, kind in more),
        element("td", badge(row["verdict"]), class_="v"),
        element("td", row["filetype"], class_="f"),
        element("td", f"{row['n_ctx']:,}", class_="c"),
        element("td", needs, class_="m"),
        element("td", pace(found), class_="s"),
        element("td", format_ms(first["value"]) if first else UNKNOWN, class_="t"),
        element("td", UNKNOWN if cost is None else f"{cost:.2f}", class_="u"),
    ]
    if short:
        cells.append(element("td", row["reason"], class_="why"))
    return element(
        "tr",
        *cells,
        data_v=row["verdict"],
        data_speed=str(found["value"]) if found else None,
        data_cost=None if cost is None else str(cost),
        data_ctx=str(row["n_ctx"]) if runs else None,
    )


def _named(record: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """The columns that name a row: what is the same in all of them is left out."""
    if len(record["models"]) == 1:
        return [("device", None)]
    return [("model", None)] + ([("device", "d")] if len(record["devices"]) > 1 else [])


def names(record: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, str]:
    """What people call a row's model and device."""
    return record["models"][row["model"]]["name"], record["devices"][row["device"]]["name"]


def _filter() -> Markup:
    """Hidden until the script runs, so that nobody meets a control that does nothing."""
    boxes = [
        element("label", element("input", type="checkbox", name="verdict", value=v, checked=""), v)
        for v in _ORDER
    ]
    orders = (
        ("", "best first"), ("speed", "fastest first"), ("cost", "cheapest tokens first"),
        ("ctx", "longest context first"),
    )  # fmt: skip
    options = [element("option", text, value=value) for value, text in orders]
    return element(
        "form",
        element("label", "Find ", element("input", type="search", name="words",
                placeholder="apple 64, l40s, qwen …")),
        *boxes,
        element("label", "Order ", element("select", *options, name="order")),
        element("span", id="count", role="status", class_="soft"),
        id="filter",
        hidden="",
    )  # fmt: skip


def _charts(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    runs = [row for row in rows if row["verdict"] == "fits" and row["decode_tok_s"]]
    if len(runs) < 2:
        return None
    fast = sorted(runs, key=lambda row: -row["decode_tok_s"]["value"])[:CHARTED]
    cheap = [row for row in runs if row["cost"]["usd_per_million_tokens"] is not None]
    cheap.sort(key=lambda row: row["cost"]["usd_per_million_tokens"])
    return element(
        "div",
        _figure(
            "Fastest that fit",
            f"Tokens a second for each user, with the range. {_of(fast, runs)}",
            [Point(_label(record, r), **_estimate(r["decode_tok_s"])) for r in fast],
            "tok/s",
        ),
        _figure(
            "Cheapest tokens",
            "USD for a million generated tokens, devices with a known price only. "
            + _of(cheap[:CHARTED], cheap),
            [Point(_label(record, r), **_cost(r)) for r in cheap[:CHARTED]],
            "USD",
        )
        if cheap
        else None,
        class_="charts",
    )


def _of(shown: Sequence[object], everything: Sequence[object]) -> str:
    return f"{len(shown)} of {len(everything)}." if len(shown) < len(everything) else ""


def _label(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    model, device = names(record, row)
    parts = [model] if len(record["models"]) > 1 else []
    parts += [device] if len(record["devices"]) > 1 else []
    return f"{', '.join(parts) or model} · {row['filetype']}"


def _estimate(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: found[name] for name in ("value", "low", "high")}


def _cost(row: Mapping[str, Any]) -> dict[str, float]:
    """Dearer at the slow end of the speed, cheaper at the fast end."""
    value, found = row["cost"]["usd_per_million_tokens"], row["decode_tok_s"]
    return {
        "value": value,
        "low": value * found["value"] / found["high"],
        "high": value * found["value"] / found["low"],
    }


def _figure(name: str, below: str, points: Sequence[Point], unit: str) -> Markup:
    def show(value: float | None) -> str:
        return UNKNOWN if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"

    caption = element("figcaption", element("h3", name), element("p", below, class_="soft"))
    chart = range_rows(points, show, unit, f"{name}: the figures are in the table of all verdicts")
    return join(element("figure", caption, chart))
