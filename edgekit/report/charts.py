"""Three small SVG charts. Widths are viewBox units, near one CSS pixel on a phone.

Colours come from the page's CSS classes, so that light, dark and print need no second drawing.
Shapes differ as well as colours. Each chart stands above a table with the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.report.markup import Markup, element, join
from edgekit.report.record import Estimate, Percentiles

WIDTH = 360
LEFT, RIGHT = 62, 66
ROW = 34
TOP = 6
AXIS = 24


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar chart; None is unknown and draws nothing but its label."""

    label: str
    measured: float | None
    predicted: Estimate | None = None


def ticks(largest: float, about: int = 5) -> list[float]:
    """Return round axis marks from 0 to at least `largest`: steps of 1, 2 or 5 times 10^k."""
    if largest <= 0 or not math.isfinite(largest):
        return [0.0, 1.0]
    rough = largest / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]


def range_chart(
    rows: Sequence[tuple[str, Percentiles]], show: Callable[[float | None], str], label: str
) -> Markup:
    """Draw p50 (dot), p95 (stroke) and p99 (ring) of each row on one axis that starts at zero."""
    known = [v for _, p in rows for v in (p.p50, p.p95, p.p99) if v is not None]
    marks = ticks(max(known, default=0.0))
    scale = _scale(marks)
    parts: list[Markup] = [_axis(marks, len(rows))]
    for index, (name, spread) in enumerate(rows):
        y = TOP + ROW * index + ROW / 2
        parts += [_label(name, y), _value(show(spread.p50), y)]
        if spread.p50 is None:
            continue
        far = max(v for v in (spread.p50, spread.p95, spread.p99) if v is not None)
        x50, end = scale(spread.p50), scale(far)
        parts.append(element("line", x1=x50, x2=end, y1=y, y2=y, class_="range"))
        if spread.p95 is not None:
            x95 = scale(spread.p95)
            parts.append(element("line", x1=x95, x2=x95, y1=y - 7, y2=y + 7, class_="p95"))
        if spread.p99 is not None:
            parts.append(element("circle", cx=scale(spread.p99), cy=y, r=4.5, class_="p99"))
        parts.append(element("circle", cx=x50, cy=y, r=5.5, class_="p50"))
    return _svg(parts, len(rows), label)


def bar_chart(rows: Sequence[Bar], show: Callable[[float | None], str], label: str) -> Markup:
    """Draw measured bars from zero, with the prediction as a diamond on its error bar."""
    known = [row.measured for row in rows if row.measured is not None]
    for row in rows:
        if row.predicted is not None:
            known += [row.predicted.value, row.predicted.high or row.predicted.value]
    marks = ticks(max(known, default=0.0))
    scale = _scale(marks)
    parts: list[Markup] = [_axis(marks, len(rows))]
    for index, row in enumerate(rows):
        y = TOP + ROW * index + ROW / 2
        parts += [_label(row.label, y), _value(show(row.measured), y)]
        if row.measured is not None:
            width = max(1.0, scale(row.measured) - LEFT)
            parts.append(element("rect", x=LEFT, y=y - 8, width=width, height=16, class_="bar"))
        if row.predicted is not None:
            parts.append(_prediction(row.predicted, scale, y))
    return _svg(parts, len(rows), label)


def _prediction(guess: Estimate, scale: Callable[[float], float], y: float) -> Markup:
    x = scale(guess.value)
    whisker = None
    if guess.low is not None and guess.high is not None:
        low, high = scale(guess.low), scale(guess.high)
        ends = f"M{low:.1f} {y - 5}v10M{high:.1f} {y - 5}v10"
        whisker = element("path", d=f"{ends}M{low:.1f} {y}H{high:.1f}", class_="whisker")
    diamond = element("path", d=f"M{x:.1f} {y - 6}l6 6l-6 6l-6 -6z", class_="predicted")
    return join(whisker, diamond)


def _scale(marks: Sequence[float]) -> Callable[[float], float]:
    span = WIDTH - LEFT - RIGHT
    return lambda value: LEFT + span * value / marks[-1]


def _axis(marks: Sequence[float], n_rows: int) -> Markup:
    scale, bottom = _scale(marks), TOP + ROW * n_rows
    # Wide figures need room: label every other mark once there are many.
    every = (
        1 if max(len(_tick(mark)) for mark in marks) * 7 * len(marks) < WIDTH - LEFT - RIGHT else 2
    )
    return join(
        *(
            join(
                element("line", x1=scale(m), x2=scale(m), y1=TOP, y2=bottom, class_="grid"),
                element("text", _tick(m), x=scale(m), y=bottom + 16, class_="tick")
                if index % every == 0
                else None,
            )
            for index, m in enumerate(marks)
        )
    )


def _tick(mark: float) -> str:
    return f"{mark:,.0f}" if mark >= 10 or mark == int(mark) else f"{mark:g}"


def _label(text: str, y: float) -> Markup:
    return element("text", text, x=LEFT - 10, y=y + 4, class_="label")


def _value(text: str, y: float) -> Markup:
    return element("text", text, x=WIDTH, y=y + 4, class_="value")


def _svg(parts: Sequence[Markup], n_rows: int, label: str) -> Markup:
    height = TOP + ROW * n_rows + AXIS
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label)
