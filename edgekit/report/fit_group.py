"""One model on one device: verdict, memory by part, contexts × users, speed, what else there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.report.fit_charts import PARTS, Point, heat_map, memory_chart, memory_key, range_rows
from edgekit.report.fit_explain import tiles
from edgekit.report.markup import Markup, element, join, table
from edgekit.units import GIB, UNKNOWN, format_gib, format_ms, format_tok_s

_SIGN = {"fits": "✓ fits", "tight": "△ tight", "no": "✕ no"}
_RUNNING = ("decode", "prefill", "ttft", "ceiling", "loss", "cost")


def badge(verdict: str) -> Markup:
    """A verdict as a small coloured word with a sign."""
    return element("span", _SIGN[verdict], class_=f"badge {verdict}")


def pace(found: Mapping[str, Any] | None) -> str:
    """ "12.7 (10.6–15.1)"."""
    if found is None:
        return UNKNOWN
    return f"{found['value']:,g} ({found['low']:,g}–{found['high']:,g})"


def group_section(
    record: Mapping[str, Any], index: int, *, alone: bool, opened: bool, brief: bool
) -> Markup:
    """The section of a group; not `opened` it is one line that opens."""
    group = record["groups"][index]
    rows = record["rows"][group["first"] : group["first"] + group["count"]]
    row = rows[0]
    model = record["models"][row["model"]]["name"]
    device = record["devices"][row["device"]]["name"]
    heading = join(
        element("h2", "The verdict in full" if alone else f"{model} on {device}"),
        None if alone else " ",
        None if alone else badge(row["verdict"]),
        element("span", _line(row), class_="soft one"),
    )
    content = element(
        "div",
        element("p", _sentence(row)),
        _next(row),
        _helps(record, row),
        _figures(row, group),
        element("h3", "Every figure, and how it comes about"),
        tiles(_kept(row, group["figures"]), _below(row), brief=brief),
        _others(rows),
        *(element("p", element("b", "Note: "), note) for note in row["notes"]),
        id=f"g{index}",
    )
    if opened:
        return element("section", element("div", heading, class_="head"), content, class_="group")
    return element("details", element("summary", heading), content, class_="group")


def _line(row: Mapping[str, Any]) -> str:
    if row["verdict"] == "no":
        return f"{row['filetype']} {row['reason']}"
    speed = f" · {pace(row['decode_tok_s'])} tok/s each" if row["decode_tok_s"] else ""
    return f"{row['filetype']} · {row['n_ctx']:,} tokens, {_users(row['users'])}{speed}"


def _sentence(row: Mapping[str, Any]) -> str:
    reason = row["reason"]
    if row["verdict"] == "no":
        return f"Even {row['filetype']} {reason}."
    return f"{reason[0].upper()}{reason[1:]}."


def _next(row: Mapping[str, Any]) -> Markup:
    """What to type, for somebody who goes on from here."""
    name = f"{row['model']}:{row['filetype']}"
    if row["verdict"] == "no":
        command, why = f"edgekit buy {row['model']} --users {row['users']}", "What would run it: "
    else:
        command = f"edgekit deploy {name} --users {row['users']} --ctx {row['n_ctx']}"
        why = "On the device: "
    return element("p", why, element("code", command), class_="next")


def _of(row: Mapping[str, Any]) -> str:
    return f"{row['model']} on {row['device']}"


def _helps(record: Mapping[str, Any], row: Mapping[str, Any]) -> Markup | None:
    """What would mend the verdict, in the words of the terminal."""
    own = [
        h
        for h in record.get("remedies", ())
        if (h["model"], h["device"]) == (row["model"], row["device"])
    ]
    if not own:
        return None
    lines = [
        element("li", h["text"], element("code", h["option"]) if h["option"] else None) for h in own
    ]
    return element("div", element("p", "What would help:"), element("ul", *lines))


def _users(n: int) -> str:
    return "for 1 user" if n == 1 else f"shared by {n} users"


def _figures(row: Mapping[str, Any], group: Mapping[str, Any]) -> Markup:
    grid = group.get("grid")
    some = grid and any(c["verdict"] != "no" for cells in grid["cells"] for c in cells)
    return element(
        "div",
        _memory(row),
        _heat(row, grid) if grid is not None and some else None,
        _speed(row) if row["decode_tok_s"] else None,
        class_="charts",
    )


def _memory(row: Mapping[str, Any]) -> Markup:
    parts = row["bytes"]["parts"]
    heads = ["part", *(p["memory"] for p in parts)]
    cells = [
        [words, *(UNKNOWN if p[k] is None else f"{p[k] / GIB:,.2f}" for p in parts)]
        for k, words in (*PARTS, ("total", "together"), ("budget", "budget"))
    ]
    return _figure(
        "Memory",
        f"By part, against the budget: {row['bytes']['budget_basis']}.",
        memory_key(),
        memory_chart(parts, "Memory by part against the budget; the table below says the same"),
        table(
            heads,
            cells,
            f"GiB, {row['filetype']} at {row['n_ctx']:,} tokens",
            f"Memory, {_of(row)}",
        ),
    )


def _heat(row: Mapping[str, Any], grid: Mapping[str, Any]) -> Markup:
    caption = f"Tokens a second for each user, {row['filetype']}. * as asked"
    return _figure(
        "Context × users",
        "A row for each number of users, a column for the context that each of them gets, in "
        "tokens (8k is 8,192). The number is the speed; tight or no where it does not fit well.",
        heat_map(grid, row["users"], caption, f"Context and users, {_of(row)}"),
    )


def _speed(row: Mapping[str, Any]) -> Markup:
    decode, users = row["decode_tok_s"], row["users"]
    points = [_point("decode, each user", decode)]
    if users > 1:
        points.append(_point(f"decode, all {users} users together", decode, users))
    charts = [range_rows(points, _tok_s, "tok/s", "Decode speed with its range")]
    if row["prefill_tok_s"]:
        points = [_point("prefill, reading a prompt", row["prefill_tok_s"])]
        charts.append(range_rows(points, _tok_s, "tok/s", "Prefill speed with its range"))
    if row["ttft_ms"]:
        points = [_point("time to first token", row["ttft_ms"])]
        charts.append(range_rows(points, format_ms, "ms", "Time to first token with its range"))
    heads = ["figure", "low", "expected", "high", "basis"]
    cells = [
        [name, show(f["low"]), show(f["value"]), show(f["high"]), f["basis"]]
        for name, f, show in (
            ("decode, each", decode, _tok_s),
            ("prefill", row["prefill_tok_s"], _tok_s),
            ("first token", row["ttft_ms"], lambda ms: format_ms(ms).removesuffix(" ms")),
        )
        if f
    ]
    return _figure(
        "Speed",
        "Expected (dot), and from low to high.",
        *charts,
        table(heads, cells, "tok/s; first token in milliseconds", f"Speed, {_of(row)}"),
    )


def _point(label: str, found: Mapping[str, Any], times: int = 1) -> Point:
    value, low, high = (found[k] * times for k in ("value", "low", "high"))
    return Point(label, value, low, high)


def _tok_s(value: float | None) -> str:
    return format_tok_s(value).removesuffix(" tok/s")


def _figure(name: str, below: str, *content: Markup) -> Markup:
    caption = element("figcaption", element("h3", name), element("p", below, class_="soft"))
    return element("figure", caption, *content)


def _kept(
    row: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """Speed and cost of what does not run would only mislead."""
    if row["verdict"] != "no":
        return figures
    return [f for f in figures if f["id"] not in _RUNNING]


def _below(row: Mapping[str, Any]) -> dict[str, str]:
    found = {"needs": f"of {format_gib(row['bytes']['parts'][0]['budget'])} that may be used"}
    for name, key in (("decode", "decode_tok_s"), ("prefill", "prefill_tok_s")):
        if row[key]:
            found[name] = f"{_tok_s(row[key]['low'])} to {_tok_s(row[key]['high'])}"
    if row["ttft_ms"]:
        found["ttft"] = f"{format_ms(row['ttft_ms']['low'])} to {format_ms(row['ttft_ms']['high'])}"
    if row["cost"]["usd_per_million_tokens"] is None:
        cost = row["cost"]
        lacks = [w for w, k in (("price", "device_usd"), ("power", "watts")) if cost[k] is None]
        found["cost"] = f"not known: {' and '.join(lacks or ['speed'])}"
    found["loss"] = "against the unquantized model"
    found["verdict"] = f"gives out first: {row['binding']}"
    return found


def _others(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    if len(rows) < 2:
        return None
    heads = ["file type", "verdict", "memory", "longest context", "tok/s each", "loss", "why"]
    cells = [
        [
            r["filetype"], r["verdict"], format_gib(r["bytes"]["parts"][0]["total"]),
            f"{r['largest_ctx']:,}" if r["largest_ctx"] else UNKNOWN,
            pace(r["decode_tok_s"]), f"{r['quality']['loss']:.4f}", r["reason"],
        ]
        for r in rows[1:]
    ]  # fmt: skip
    caption = f"At {rows[0]['n_ctx']:,} tokens. The file type of least loss that fits is chosen."
    return element(
        "div",
        element("h3", "Other file types"),
        table(heads, cells, caption, f"Other file types, {_of(rows[0])}"),
        class_="others",
    )
