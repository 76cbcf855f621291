"""The rows of a comparison in words: one label, one text for each model.

Terminal, HTML and whatever else shows a comparison set these, so that they all say the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from edgekit.compare import Column, Comparison
from edgekit.facts import Evidence
from edgekit.speed import Estimate
from edgekit.units import UNKNOWN, format_bytes, format_count
from edgekit.wording import gib

MOST_SCORES = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `cells` has a text for each column, in its order."""

    label: str
    cells: tuple[str, ...]


def rows(found: Comparison) -> list[Row]:
    """All rows, the verdict first. A row that says nothing of any model is left out."""
    shared = _shared_scores(found)
    makers: list[tuple[str, Callable[[Column], str]]] = [
        ("Verdict", lambda c: c.verdict),
        ("Why", _why),
        ("Weights", _weights),
        ("File type", _filetype),
        ("Memory", _memory),
        ("Context", _context),
        ("Speed", lambda c: _estimate(c.best.speed.decode, "tok/s a user", 1)),
        ("1st token", lambda c: _seconds(c.best.speed.ttft_ms)),
        ("Cost", _cost),
        ("Scores", lambda c: _scores(c, shared)),
        ("Tools", lambda c: c.card.tools or UNKNOWN),
        ("Fill-in", lambda c: {True: "trained for it", False: "none", None: UNKNOWN}[c.card.fim]),
        ("Vision", lambda c: "in the weights, not served" if c.card.vision else "none"),
        ("Licence", lambda c: c.card.licence.label),
        ("Commerce", _commerce),
        ("Users", _users),
        ("EU", lambda c: c.card.licence.eu_clause or _nothing(c, "nothing withheld")),
        ("Credit", lambda c: c.card.licence.attribution or _nothing(c, "nothing")),
        ("Duties", lambda c: c.card.licence.conditions or _nothing(c, "nothing")),
        ("Gate", _gate),
        ("Air gap", _air_gap),
        ("Unsure", lambda c: "; ".join(c.card.unverified)),
    ]
    made = [Row(label, tuple(text(c) for c in found.columns)) for label, text in makers]
    return [row for row in made if any(row.cells)]


def _why(c: Column) -> str:
    return c.why if not c.conditions else f"{c.why}; first: {', '.join(c.conditions)}"


def _weights(c: Column) -> str:
    n = c.card.params
    size = f"{n / 1e9:,.1f} B" if n >= 1e8 else f"{n / 1e6:,.1f} M"
    active = f", {c.card.params_active / 1e9:g} B active" if c.card.params_active else ""
    released = f", {c.card.released}" if c.card.released else ""
    # The owner is in the record; here the name of the weights is what tells models apart.
    place = next((s.location.rsplit("/", 1)[-1] for s in c.card.sources if s.kind == "hub"), "")
    return f"{f'{place}, ' if place else ''}{size}{active}{released}"


def _filetype(c: Column) -> str:
    kind = c.best.filetype
    return f"{kind.id}, {format_bytes(c.best.file_bytes)}; expected loss KL {kind.loss:.4f}"


def _memory(c: Column) -> str:
    main = c.best.plan.parts[0]
    budget = UNKNOWN if main.budget is None else gib(main.budget)
    whole = main.total
    if c.best.missing_bytes is not None and main.budget is not None:
        whole = max(whole, main.budget + c.best.missing_bytes)
    return f"{gib(whole)} of {budget}"


def _context(c: Column) -> str:
    plan = c.best.plan
    who = "" if plan.users == 1 else f" shared by {plan.users}"
    text = f"{format_count(plan.n_ctx)}{who}; trained on {format_count(c.card.n_ctx_train)}"
    if c.best.largest_ctx:
        text += f"; most that fits {format_count(c.best.largest_ctx)}"
    return text


def _estimate(estimate: Estimate | None, unit: str, digits: int) -> str:
    if estimate is None:
        return UNKNOWN
    if estimate.value >= 100:
        digits = 0
    value, low, high = (f"{v:,.{digits}f}" for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}-{high}) {unit}, {BASIS[estimate.basis]}"


BASIS = {
    "measured": "measured here",
    "published": "published for this device",
    "family": "from devices of its kind",
    "physics": "from physics alone",
}


def _seconds(estimate: Estimate | None) -> str:
    if estimate is None:
        return UNKNOWN
    value, low, high = (f"{v / 1000:.1f}" for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}-{high}) s, {BASIS[estimate.basis]}"


def _cost(c: Column) -> str:
    total = c.cost.total
    if total is not None:
        return f"{_money(total)} USD per million tokens"
    if c.best.verdict != "fits" or c.best.speed.decode is None:
        return UNKNOWN
    known = []
    if c.cost.power is not None:
        known.append(f"{_money(c.cost.power)} USD of power per million tokens")
    if c.cost.price is not None:
        known.append(f"{_money(c.cost.price)} USD of price per million tokens")
    return "; ".join([*known, f"{' and '.join(c.cost.missing)} not known"])


def _money(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def score_name(name: str) -> str:
    """The benchmark without how it was run: "MMLU-Pro 5-shot" -> "mmlu-pro"."""
    return re.sub(r"[ ,(]*\d+[- ]shot.*$", "", name).strip().lower()


def _shared_scores(found: Comparison) -> dict[str, int]:
    """How many of the models have a score of each benchmark."""
    return Counter(
        name for c in found.columns for name in {score_name(e.name) for e in c.card.evidence}
    )


def _scores(c: Column, shared: dict[str, int]) -> str:
    """Those first that other models have too; how many more there are is said."""
    if not c.card.evidence:
        return "none in the catalogue"
    # `sorted` is stable: the maker's own order stays among equals.
    ranked = sorted(c.card.evidence, key=lambda e: -shared[score_name(e.name)])
    texts = [_score(e) for e in ranked[:MOST_SCORES]]
    more = len(ranked) - MOST_SCORES
    return "; ".join(texts) + (f"; {more} more" if more > 0 else "")


def _score(e: Evidence) -> str:
    return f"{e.name} {e.score:g}"


def _commerce(c: Column) -> str:
    known = {True: "allowed", False: "not allowed", None: "not read up"}
    return known[c.card.licence.commercial_use]


def _users(c: Column) -> str:
    limit = c.card.licence.mau_limit
    return _nothing(c, "no limit") if limit is None else f"not above {limit:,} a month"


def _nothing(c: Column, text: str) -> str:
    """What a licence leaves out means nothing while nobody has read it."""
    return UNKNOWN if c.card.licence.commercial_use is None else text


def _gate(c: Column) -> str:
    known = {True: "the hub asks for consent", False: "none", None: "not known"}
    text = known[c.card.gated]
    return f"{text}: {c.card.gate}" if c.card.gate else text


def _air_gap(c: Column) -> str:
    ready = {True: "yes", False: "no", None: "with conditions"}[c.air_gap.suitable]
    return f"{ready}: {c.air_gap.why}; {format_bytes(c.air_gap.stick_bytes)} on the stick"
