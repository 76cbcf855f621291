"""Charts of a fit report: memory by part against its budget, and figures with error bars.

Widths are viewBox units, as in `charts`; colours are classes of the page. Every chart stands above
a table, or beside a figure, that says the same in text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.report.charts import ticks
from edgekit.report.markup import Markup, element, join
from edgekit.units import GIB, UNKNOWN

WIDTH = 360
PARTS = (("weights", "weights"), ("kv", "KV cache"), ("compute", "compute"),
         ("overhead", "overhead"))  # fmt: skip
BLOCK, BAR, AXIS = 58, 20, 22


@dataclass(frozen=True, slots=True)
class Point:
    """A figure with its range; None draws nothing but the label."""

    label: str
    value: float | None
    low: float | None
    high: float | None


def memory_chart(parts: Sequence[Mapping[str, Any]], label: str) -> Markup:
    """Draw one bar for each memory, its four parts in turn, and a line where its budget ends."""
    most = max(max(part["total"], part["budget"] or 0) for part in parts) / GIB
    marks = ticks(most)
    scale = _scale(marks[-1], 1, WIDTH - 8)
    drawn: list[Markup] = []
    for index, part in enumerate(parts):
        y = BLOCK * index + 20
        drawn.append(element("text", _memory_words(part), x=0, y=y - 7))
        start = 0.0
        for name, _ in PARTS:
            size = part[name] / GIB
            x, end = scale(start), scale(start + size)
            if size > 0:
                width = max(0.6, end - x)
                drawn.append(
                    element("rect", x=x, y=y, width=width, height=BAR, class_=f"part {name}")
                )
            start += size
        if part["budget"] is not None:
            x = scale(part["budget"] / GIB)
            drawn.append(element("line", x1=x, x2=x, y1=y - 4, y2=y + BAR + 5, class_="budget"))
    bottom = BLOCK * len(parts) - 6
    drawn.insert(0, _axis(marks, scale, 4, bottom, "GiB"))
    return _svg(drawn, bottom + AXIS, label)


def memory_key() -> Markup:
    """The legend of `memory_chart`."""
    keys = [
        element("span", _key(element("rect", x=1, y=2, width=12, height=10,
                class_=f"part {name}")), words)
        for name, words in PARTS
    ]  # fmt: skip
    keys.append(
        element("span", _key(element("line", x1=7, x2=7, y1=0, y2=14, class_="budget")), "budget")
    )
    return element("p", *keys, class_="legend")


def range_rows(
    points: Sequence[Point], show: Callable[[float | None], str], unit: str, label: str
) -> Markup:
    """Draw each figure as a dot on the line from its low to its high end, from zero."""
    marks = ticks(max((p.high or p.value or 0.0 for p in points), default=0.0))
    scale = _scale(marks[-1], 1, WIDTH - 14)
    row = 42
    drawn: list[Markup] = []
    for index, point in enumerate(points):
        y = row * index + 30
        value = element("text", show(point.value), x=WIDTH, y=y - 13, class_="value")
        drawn += [element("text", point.label, x=0, y=y - 13), value]
        if point.value is None:
            continue
        if point.low is not None and point.high is not None:
            low, high = scale(point.low), scale(point.high)
            ends = f"M{low:.1f} {y - 5}v10M{high:.1f} {y - 5}v10M{low:.1f} {y}H{high:.1f}"
            drawn.append(element("path", d=ends, class_="whisker"))
        drawn.append(element("circle", cx=scale(point.value), cy=y, r=4.5, class_="p50"))
    bottom = row * len(points)
    drawn.insert(0, _axis(marks, scale, 18, bottom, unit))
    return _svg(drawn, bottom + AXIS, label)


def heat_map(grid: Mapping[str, Any], asked_users: int, caption: str, label: str) -> Markup:
    """A table of verdicts: a row for each number of users, a column for each context.

    The cell says the speed, or why there is none, so that colour only repeats it.
    """
    head = element(
        "tr",
        element("th", "users", scope="col"),
        *(element("th", _short(n), scope="col") for n in grid["contexts"]),
    )
    rows = []
    for users, cells in zip(grid["users"], grid["cells"], strict=True):
        name = f"{users}*" if users == asked_users else f"{users}"
        shown = (element("td", *_cell(c), class_=c["verdict"]) for c in cells)
        rows.append(element("tr", element("th", name, scope="row"), *shown))
    body = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *rows),
        class_="heat",
    )
    return element("div", body, class_="scroll", tabindex="0", role="region", aria_label=label)


def _cell(cell: Mapping[str, Any]) -> list[str]:
    if cell["verdict"] == "no":
        return ["no"]
    found = cell["tok_s"]
    pace = UNKNOWN if found is None else f"{found:,.0f}" if found >= 100 else f"{found:.3g}"
    return [pace] if cell["verdict"] == "fits" else [pace, element("small", "tight")]


def _short(n: int) -> str:
    return f"{n // 1024}k" if n % 1024 == 0 else f"{n:,}"


def _memory_words(part: Mapping[str, Any]) -> str:
    needs = f"{part['memory']}: {part['total'] / GIB:,.1f}"
    if part["budget"] is None:
        return f"{needs} GiB, budget not known"
    return f"{needs} of {part['budget'] / GIB:,.1f} GiB"


def _scale(largest: float, left: float, right: float) -> Callable[[float], float]:
    return lambda value: left + (right - left) * min(1.0, value / largest)


def _axis(
    marks: Sequence[float], scale: Callable[[float], float], top: float, bottom: float, unit: str
) -> Markup:
    drawn: list[Markup] = []
    every = 1 if len(f"{marks[-1]:,g}") * 9 * len(marks) < WIDTH else 2
    last = (len(marks) - 1) // every * every
    for index, mark in enumerate(marks):
        x = scale(mark)
        drawn.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        if index % every == 0:
            anchor = "start" if index == 0 else "end" if index == last and x > 330 else "middle"
            text = f"{mark:,g} {unit}" if index == last else f"{mark:,g}"
            where = WIDTH if anchor == "end" else x
            drawn.append(
                element("text", text, x=where, y=bottom + 15, class_="soft", text_anchor=anchor)
            )
    return join(*drawn)


def _key(shape: Markup) -> Markup:
    return element("svg", shape, viewBox="0 0 14 14", class_="key", aria_hidden="true")


def _svg(drawn: Sequence[Markup], height: float, label: str) -> Markup:
    return element("svg", *drawn, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)
