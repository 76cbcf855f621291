"""Each figure of a verdict with its formula, the numbers put in, and where they come from.

The same figures go to the terminal, the JSON and the page. A formula is filled in from the very
functions that the verdict came from; where what they say no longer adds up to the figure (a
measurement stands in its place), only the figure and its basis are given.
"""

from __future__ import annotations

from dataclasses import asdict

from edgekit import explain_memory, explain_speed, memory
from edgekit.candidate import Candidate
from edgekit.explained import Figure, Input, gib, plain
from edgekit.fit_record import ASSUMED, cost_of
from edgekit.price import price_of
from edgekit.units import UNKNOWN


def explain(c: Candidate) -> list[Figure]:
    """Every figure of a candidate, the verdict first, then memory, speed, quality and cost."""
    table = memory.weights(c.card, c.filetype.id)
    return [
        _verdict(c),
        *explain_memory.figures(c, table),
        *explain_speed.figures(c, table),
        _loss(c),
        _cost(c),
    ]


def as_dicts(figures: list[Figure]) -> list[dict[str, object]]:
    """JSON form."""
    return [asdict(figure) for figure in figures]


def _verdict(c: Candidate) -> Figure:
    plan = c.plan
    main, limit = plan.parts[0], plan.device.limit_bytes
    filled = []
    if main.budget is not None:
        sign = "≤" if main.total <= main.budget else ">"
        filled.append(f"needs {gib(main.total)} {sign} budget {gib(main.budget)} ({main.memory})")
    for part in plan.parts[1:]:
        if part.budget is not None:
            sign = "≤" if part.total <= part.budget else ">"
            filled.append(f"{part.memory} {gib(part.total)} {sign} {gib(part.budget)}")
    most = c.card.n_ctx_train * plan.users
    sign = "≤" if plan.n_ctx <= most else ">"
    filled.append(f"context {plan.n_ctx:,} {sign} {c.card.n_ctx_train:,} × {plan.users} users")
    if len(plan.parts) > 1:
        filled.append(f"layers on the device: {plan.n_gpu_layers} of {plan.n_layers}")
    filled.append(f"→ {c.verdict}; what gives out first: {c.binding}")
    return Figure(
        "verdict",
        "Verdict",
        c.verdict,
        "fits: every memory within its budget and the context within the model's own. "
        "tight: it runs, but into the spare margin, or with up to half of the layers on the host. "
        "no: everything else, and a device whose memory is not known or that cannot run "
        "llama.cpp",
        tuple(filled),
        (
            Input("memory that is there", gib(limit), plan.device.basis),
            Input("context in training", f"{c.card.n_ctx_train:,} tokens", "the model's config"),
            Input("users", plain(plan.users), "asked for"),
        ),
        c.reason,
    )


def _loss(c: Candidate) -> Figure:
    kind = c.filetype
    return Figure(
        "loss",
        "Quality lost",
        f"KL {kind.loss:.4f}",
        "mean KL divergence of the next-token odds from those of the unquantized model; "
        "0 is no loss",
        (f"{kind.id}: {kind.loss:.4f}",),
        (Input("file type", kind.id, "the choice of least loss that fits, or asked for"),),
        f"{kind.basis}; a figure for the file type, measured on one model family, not on this "
        "model",
    )


def _cost(c: Candidate) -> Figure:
    found, price, watts = cost_of(c), price_of(c.device), c.device.watts
    total = found.total
    return Figure(
        "cost",
        "Cost of a million tokens",
        UNKNOWN if total is None else f"{total:.2f} USD",
        "price ÷ tokens made in its life + kW × price of a kWh × hours for them, by the million",
        () if total is None else found.formula,
        (
            Input("price", UNKNOWN if price.usd is None else f"{price.usd:,.0f} USD", price.note),
            Input("power", UNKNOWN if watts is None else f"{watts:g} W", c.device.source),
            Input(
                "life",
                f"{ASSUMED.years:g} years at {ASSUMED.utilisation * 100:g} % use",
                "assumed, the same for all",
            ),
            Input("power price", f"{ASSUMED.kwh_price:g} USD a kWh", "assumed, the same for all"),
        ),
        "the device alone: no idle hours, no machine around a card"
        if total is not None
        else f"not known: {' and '.join(found.missing)}",
    )
