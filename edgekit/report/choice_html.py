"""The records `edgekit.compare/1` and `edgekit.buy/1` as pages like the fit report's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.report.fit_charts import Point, memory_chart, memory_key, range_rows
from edgekit.report.fit_group import badge, pace
from edgekit.report.markup import Markup, element, join, table
from edgekit.report.page import page
from edgekit.units import GIB, UNKNOWN, format_ms

SHOWN: Final = 12
MISSES: Final = 40
"""Near misses beyond these are in the JSON and the table file."""

_ASKED: Final = (
    ("tok_s", "at least {:g} tok/s each"),
    ("ttft_ms", "first token in {:g} ms"),
    ("budget_usd", "at most {:,.0f} USD"),
    ("watts", "at most {:g} W"),
)


def compare_page(record: Mapping[str, Any]) -> str:
    """Return the page of a comparison. Raises KeyError for another record."""
    rows, device = record["rows"], record["device"]
    users = "1 user" if record["users"] == 1 else f"{record['users']} users"
    title = f"{' · '.join(row['name'] for row in rows)}"
    heads = ["model", *(row["name"] for row in rows)]
    lines = [[line["label"], *line["cells"]] for line in record["table"]]
    sources = dict.fromkeys(r["evidence_source"] for r in rows if r["evidence_source"])
    runs = [(row["name"], row["fit"], row["cost"]) for row in rows]
    body = join(
        element(
            "header",
            element("h1", title),
            element("p", f"Side by side on {device['name']}, for {users}.", class_="lead"),
            *(element("p", element("b", f"{row['name']}: "), row["why"]) for row in rows),
        ),
        _absent(record["absent"]),
        element("section", _charts(runs), class_="charts"),
        element(
            "section",
            element("h2", "Side by side"),
            table(heads, lines, f"On {device['name']}, {users}"),
            class_="side",
        ),
        _notes(record, [f"Scores: {source}" for source in sources]),
    )
    return page(title, body, "Written by edgekit, schema edgekit.compare/1.", script=False)


def buy_page(record: Mapping[str, Any]) -> str:
    """Return the page of an answer of `buy`. Raises KeyError for another record."""
    need, rows = record["need"], record["rows"]
    title = f"What to buy for {need['model']}"
    users = "1 user" if need["users"] == 1 else f"{need['users']} users"
    asked = [f"{need['n_ctx']:,} tokens shared by {users}"]
    for key, words in _ASKED:
        if need[key] is not None:
            asked.append(words.format(need[key]))
    best = rows[0] if rows else None
    answer = (
        f"{best['name']} meets it: {_usd(best['price_usd'])}."
        if best
        else "No device of the catalogue is known to meet all of it."
    )
    runs = [(o["name"], o["fit"], o["cost"]) for o in rows[:SHOWN]]
    body = join(
        element(
            "header",
            element("h1", title),
            element("p", answer, class_="lead"),
            element("p", "Asked for: " + ", ".join(asked) + ".", class_="soft"),
        ),
        element("section", _charts(runs), class_="charts") if runs else None,
        _offers("Meet all of it, best first", rows),
        _offers("Nothing against them, but not everything is known", record["open"]),
        _offers("Do not meet it, nearest first", record["misses"]),
        _notes(record, [f"Price: {record['assumptions']['price']}"]),
    )
    return page(title, body, "Written by edgekit, schema edgekit.buy/1.", script=False)


def _charts(runs: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> Markup:
    parts = [{**fit["bytes"]["parts"][0], "memory": name} for name, fit, _ in runs]
    quick = [(name, fit["decode_tok_s"]) for name, fit, _ in runs if fit["decode_tok_s"]]
    cheap = [(name, c) for name, _, c in runs if c["usd_per_million_tokens"] is not None]
    return join(
        _figure(
            "Memory",
            "By part, against what may be used of the device's.",
            memory_key(),
            memory_chart(parts, "Memory by part; the table below has the totals"),
        ),
        _figure(
            "Speed",
            "Tokens a second for each user, with the range.",
            range_rows(
                [Point(n, d["value"], d["low"], d["high"]) for n, d in quick],
                _plain, "tok/s", "Decode speed with its range; also in the table below",
            ),
        ) if quick else None,
        _figure(
            "Cost",
            "USD for a million generated tokens, with the range of the speed.",
            range_rows(
                [Point(n, c["usd_per_million_tokens"], c["low"], c["high"]) for n, c in cheap],
                _plain, "USD", "Cost with its range; also in the table below",
            ),
        ) if cheap else None,
    )  # fmt: skip


def _offers(name: str, offers: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not offers:
        return None
    heads: tuple[str, ...] = (
        "device",
        "verdict",
        "file type",
        "memory, GiB",
        "tok/s each",
        "first token",
    )
    heads += ("USD", "W", "USD / M tokens", "remarks")
    cut = None
    if len(offers) > MISSES:
        cut = element("p", f"The first {MISSES}; --csv FILE writes all.", class_="soft")
    caption = f"{name}: memory needed of what may be used; ranges in brackets"
    body = [element("tr", *_offer(offer)) for offer in offers[:MISSES]]
    listed = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", text, scope="col") for text in heads))),
        element("tbody", *body),
    )
    region = element("div", listed, class_="scroll", tabindex="0", role="region", aria_label=name)
    return element(
        "section", element("h2", f"{name} ({len(offers)})"), cut, region, class_="offers"
    )


def _offer(offer: Mapping[str, Any]) -> list[Markup]:
    fit = offer["fit"]
    main, first = fit["bytes"]["parts"][0], fit["ttft_ms"]
    cost, watts = offer["cost"]["usd_per_million_tokens"], offer["watts"]
    budget = "?" if main["budget"] is None else f"{main['budget'] / GIB:,.1f}"
    said = [miss["text"] for miss in offer["misses"]]
    said += [f"{', '.join(offer['unknown'])} not known"] if offer["unknown"] else []
    said += offer["doubts"]
    return [
        element("th", offer["name"], scope="row"),
        element("td", badge(fit["verdict"])),
        element("td", fit["filetype"]),
        element("td", f"{main['total'] / GIB:,.1f} of {budget}"),
        element("td", pace(fit["decode_tok_s"])),
        element("td", format_ms(first["value"]) if first else UNKNOWN),
        element("td", _usd(offer["price_usd"]).removesuffix(" USD"), title=offer["price_note"]),
        element("td", UNKNOWN if watts is None else f"{watts:,.0f}"),
        element("td", UNKNOWN if cost is None else f"{cost:.2f}"),
        element("td", "; ".join(said), class_="why"),
    ]


def _absent(absent: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not absent:
        return None
    lines = [
        element("li", element("b", a["name"]), ": no weights are published under this name. "
                f"{a['why']} Shown instead: {', '.join(a['nearest'])}.")
        for a in absent
    ]  # fmt: skip
    return element(
        "section", element("h2", "About the name"), element("ul", *lines), class_="notes"
    )


def _notes(record: Mapping[str, Any], more: Sequence[str]) -> Markup:
    a = record["assumptions"]
    lines = [
        f"Context: {a['n_ctx']}",
        f"Speed: {a['decode_tok_s']}, prompts of {a['prompt_tokens']} and answers of "
        f"{a['output_tokens']} tokens; {a['range']}",
        f"Time to first token: {a['ttft_ms']}",
        f"Cost: {a['cost']}",
        "The formula behind each figure: edgekit fit MODEL --device DEVICE --html FILE",
        *more,
    ]
    return element(
        "section",
        element("h2", "How to read this"),
        element("ul", *(element("li", line) for line in lines)),
    )


def _usd(price: float | None) -> str:
    return "no price found" if price is None else f"{price:,.0f} USD"


def _plain(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _figure(name: str, below: str, *content: Markup) -> Markup:
    caption = element("figcaption", element("h2", name), element("p", below, class_="soft"))
    return element("figure", caption, *content)
