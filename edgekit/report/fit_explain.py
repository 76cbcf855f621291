"""A figure that opens: its formula, the numbers put in, where each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.report.markup import Markup, element, join


def tiles(figures: Sequence[Mapping[str, Any]], below: Mapping[str, str], *, brief: bool) -> Markup:
    """Each figure as a tile that opens; `below` has a few words for some, by figure id.

    `brief` leaves the formula in words to the page's own list of them.
    """
    return element("div", *(_tile(f, below.get(f["id"]), brief) for f in figures), class_="tiles")


def formulas(figures: Sequence[Mapping[str, Any]]) -> Markup:
    """The formulas in words, once for a page of many verdicts."""
    pairs = (join(element("dt", f["name"]), element("dd", f["formula"])) for f in figures)
    return element("dl", *pairs)


def _tile(figure: Mapping[str, Any], below: str | None, brief: bool) -> Markup:
    summary = element(
        "summary",
        element("span", figure["name"]),
        element("b", figure["value"]),
        element("span", below) if below else None,
    )
    inputs = [
        element("li", element("b", i["name"]), f" {i['value']} ", element("i", i["source"]))
        for i in figure["inputs"]
    ]
    return element(
        "details",
        summary,
        None if brief else element("p", figure["formula"], class_="formula"),
        element("ul", *(element("li", line) for line in figure["filled"]), class_="filled")
        if figure["filled"]
        else None,
        element("ul", *inputs, class_="inputs") if inputs else None,
        element("p", f"Basis: {figure['basis']}", class_="soft"),
        class_="tile",
    )
