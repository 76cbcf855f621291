"""What `edgekit buy` says of a need and of one device's figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.cli import output

if TYPE_CHECKING:
    from edgekit.buy import Answer, Offer


def need_words(answer: Answer) -> str:
    """The need as the user put it, defaults included."""
    need = answer.need
    kind = f"file type {need.filetype}" if need.filetype else f"{answer.floor} or better"
    first = f"{need.card.id} · {output.context(need.n_ctx, need.users)} · {kind}"
    asked = []
    if need.ttft_ms is not None:
        asked.append(f"first token within {need.ttft_ms:,.0f} ms")
    if need.tok_s is not None:
        asked.append(f"{need.tok_s:g} tok/s a user")
    if need.budget_usd is not None:
        asked.append(f"at most {need.budget_usd:,.0f} USD")
    if need.watts is not None:
        asked.append(f"at most {need.watts:g} W")
    if need.sure and (need.ttft_ms or need.tok_s):
        asked.append("at the slow end of each range")
    return first + ("\n" + " · ".join(asked) if asked else "")


def explain_lines(offer: Offer) -> list[str]:
    """Each figure of one device with its formula, basis or source; the first line is its name."""
    from edgekit.units import format_gib

    c = offer.candidate
    main = c.plan.parts[0]
    found = [
        f"{offer.device.id}: {offer.device.name}, {c.filetype.id}",
        f"memory: weights {format_gib(main.weights, 2)} + KV {format_gib(main.kv, 2)} + compute "
        f"{format_gib(main.compute, 2)} + overhead {format_gib(main.overhead, 2)} = "
        f"{format_gib(main.total, 2)} of {format_gib(main.budget, 2)} ({c.plan.device.basis})",
        f"file type: expected loss KL {c.filetype.loss:.4f}, {c.filetype.basis}",
    ]
    for name, estimate, unit in (
        ("decode", c.speed.decode, "tok/s a user"),
        ("prefill", c.speed.prefill, "tok/s"),
        ("first token", c.speed.ttft_ms, "ms"),
    ):
        if estimate is None:
            found.append(f"{name}: not known")
        else:
            found.append(
                f"{name}: {estimate.value:,.1f} {unit}, nine in ten from {estimate.low:,.1f} to "
                f"{estimate.high:,.1f}; basis: {estimate.basis} ({offer.device.family.id})"
            )
    found += offer.cost.formula
    found += [f"cost: not known without {' and '.join(offer.cost.missing)}"] * bool(
        offer.cost.missing
    )
    if offer.price.usd is not None and offer.device.count > 1:
        each = offer.price.usd / offer.device.count
        found.append(f"price: {offer.device.count} x {each:,.0f} USD = {offer.price.usd:,.0f} USD")
    found.append(f"price note: {offer.price.note}")
    found.append(f"device facts: {offer.device.source}")
    return found
