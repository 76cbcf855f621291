"""A record `edgekit.fit/1` as one page: verdicts first, then each model on each device.

Reads the record alone (see `edgekit.fit_report.report_record`), so the page cannot say anything
that the JSON does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.report.fit_explain import formulas
from edgekit.report.fit_group import badge, group_section
from edgekit.report.fit_overview import overview
from edgekit.report.markup import Markup, element, join
from edgekit.report.page import page

OPEN_AT_MOST: Final = 3
"""So many verdicts stand open; with more each is a line that opens."""

BRIEF_FROM: Final = 13
"""From so many verdicts on the formulas in words stand once, at the end."""


def fit_page(record: Mapping[str, Any]) -> str:
    """Return the page of a record with its `groups`. Raises KeyError for another record."""
    groups = record["groups"]
    body = join(
        _header(record),
        _absent(record),
        overview(record) if len(groups) > 1 else None,
        *_sections(record),
        _method(record),
    )
    return page(title(record), body, "Written by edgekit, schema edgekit.fit/1.", script=True)


def title(record: Mapping[str, Any]) -> str:
    """ "Mistral Small 3 on NVIDIA A10 24GB", or how many of each."""
    models, devices = record["models"], record["devices"]
    left = _one_or_many(models, "models")
    right = _one_or_many(devices, "devices")
    return f"{left} on {right}"


def _one_or_many(named: Mapping[str, Any], plural: str) -> str:
    return next(iter(named.values()))["name"] if len(named) == 1 else f"{len(named)} {plural}"


def summary(record: Mapping[str, Any]) -> str:
    """The result in a sentence or two."""
    firsts = [record["rows"][g["first"]] for g in record["groups"]]
    if not firsts:
        return "There is nothing to judge."
    users = "one user" if firsts[0]["users"] == 1 else f"{firsts[0]['users']} users at once"
    if len(firsts) > 1:
        n = {v: sum(1 for row in firsts if row["verdict"] == v) for v in ("fits", "tight", "no")}
        one = {"fits": "fits", "tight": "is tight", "no": "does not fit"}
        many = {"fits": "fit", "tight": "are tight", "no": "do not fit"}
        counted = [f"{n[v]} {(one if n[v] == 1 else many)[v]}" for v in n if n[v]]
        kind = "models" if len(record["devices"]) == 1 else "devices"
        both = len(record["models"]) > 1 and len(record["devices"]) > 1
        of = f"{len(firsts):,} {'combinations' if both else kind}"
        return f"For {users}, of {of} {', '.join(counted)}."
    row = firsts[0]
    if row["verdict"] == "no":
        return f"Does not fit for {users}: even {row['filetype']} {row['reason']}."
    pace, first = row["decode_tok_s"], row["ttft_ms"]
    how = "Runs" if row["verdict"] == "fits" else "Runs, but tight,"
    text = f"{how} as {row['filetype']} with a context of {row['n_ctx']:,} tokens for {users}."
    if pace:
        text += f" About {pace['value']:g} tokens a second for each"
        text += f" ({pace['low']:g} to {pace['high']:g})"
        text += f", the first after {first['value'] / 1000:.1f} s." if first else "."
    return text


def _header(record: Mapping[str, Any]) -> Markup:
    groups = record["groups"]
    only = record["rows"][groups[0]["first"]] if len(groups) == 1 else None
    return element(
        "header",
        element(
            "h1", title(record), " " if only else None, badge(only["verdict"]) if only else None
        ),
        element("p", summary(record), class_="lead"),
        element(
            "p",
            "Every figure is a prediction, made before anything is downloaded or bought. "
            "Press one to see its formula, what went in and where that comes from."
            if not record["shortened"]
            else "Every figure is a prediction. For the working behind one, ask for fewer: "
            "edgekit fit MODEL --device DEVICE --html FILE.",
            class_="soft",
        ),
    )


def _absent(record: Mapping[str, Any]) -> Markup | None:
    if not record["absent"]:
        return None
    lines = [
        element("li", element("b", a["name"]), f": no weights are published under this name. "
                f"{a['why']} Shown instead: {', '.join(a['nearest'])}.")
        for a in record["absent"]
    ]  # fmt: skip
    return element(
        "section", element("h2", "About the name"), element("ul", *lines), class_="notes"
    )


def _sections(record: Mapping[str, Any]) -> Sequence[Markup]:
    if record["shortened"]:
        return []
    groups = record["groups"]
    brief, opened = len(groups) >= BRIEF_FROM, len(groups) <= OPEN_AT_MOST
    return [
        group_section(record, index, alone=len(groups) == 1, opened=opened, brief=brief)
        for index in range(len(groups))
    ]


def _method(record: Mapping[str, Any]) -> Markup:
    a = record["assumptions"]
    facts = [
        ("Context", a["n_ctx"] + "; one user may take all of it, up to what the model can use"),
        ("Speed", f"{a['decode_tok_s']}, prompts of {a['prompt_tokens']} and answers of "
         f"{a['output_tokens']} tokens"),
        ("Time to first token", a["ttft_ms"]),
        ("Range", a["range"]),
        ("Cost", f"price of the device over {a['cost']['years']:g} years at "
         f"{a['cost']['utilisation'] * 100:g} % use, and power at "
         f"{a['cost']['kwh_price']:g} USD a kWh; the device alone"),
    ]  # fmt: skip
    listed = element("dl", *(join(element("dt", k), element("dd", v)) for k, v in facts))
    groups = record["groups"]
    full = max((g.get("figures", ()) for g in groups), key=len, default=())
    many = bool(full) and len(groups) >= BRIEF_FROM
    return element(
        "section",
        element("h2", "How to read this"),
        listed,
        element("h2", "Formulas") if many else None,
        formulas(full) if many else None,
    )
