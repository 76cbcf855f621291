"""An answer of `buy` as the record `edgekit.buy/1` and as rows of a table file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from edgekit.buy import Answer, Need, Offer
from edgekit.fit_record import fit_record, row
from edgekit.price import is_machine


def buy_record(answer: Answer) -> dict[str, object]:
    """The whole record. Bytes are integers, money is USD, None is unknown.

    `rows` meet everything, best first. `open` have nothing known against them. `misses` are
    nearest first.
    """
    best = answer.meets[0].device.id if answer.meets else None
    return {
        "schema": "edgekit.buy/1",
        "need": _need(answer),
        "assumptions": {
            **_fit_assumptions(),
            **answer.assumed.as_dict(),
            "cost": answer.assumed.words,
            "price": "of the device, or all cards of a group, without the machine around a card",
        },
        "answer": best,
        "rows": [_offer(offer) for offer in answer.meets],
        "open": [_offer(offer) for offer in answer.undecided],
        "misses": [_offer(offer) for offer in answer.misses],
    }


def _need(answer: Answer) -> dict[str, object]:
    need: Need = answer.need
    return {
        "model": need.card.id,
        "users": need.users,
        "n_ctx": need.n_ctx,
        "filetype": need.filetype,
        "smallest_filetype": answer.floor,
        "ttft_ms": need.ttft_ms,
        "tok_s": need.tok_s,
        "budget_usd": need.budget_usd,
        "watts": need.watts,
        "sure": need.sure,
        "gpus": need.gpus,
    }


def _fit_assumptions() -> dict[str, object]:
    """Those of the fit record, less the ones about cost, which are options here."""
    found = fit_record([])["assumptions"]
    assert isinstance(found, dict)
    return {k: v for k, v in found.items() if k != "cost"}


def _offer(offer: Offer) -> dict[str, object]:
    return {
        "device": offer.device.id,
        "name": offer.device.name,
        "count": offer.device.count,
        "status": offer.status,
        "whole_machine": is_machine(offer.device),
        "price_usd": offer.price.usd,
        "price_date": offer.price.date,
        "price_note": offer.price.note,
        "watts": offer.device.watts,
        "cost": offer.cost.as_dict(),
        "misses": [asdict(miss) for miss in offer.misses],
        "unknown": list(offer.unknown),
        "doubts": list(offer.doubts),
        "fit": {k: v for k, v in row(offer.candidate).items() if k != "cost"},
    }


def buy_rows(answer: Answer) -> list[Mapping[str, object]]:
    """One flat row for each device, ranked ones first; None is unknown."""
    ranked = [*answer.meets, *answer.undecided, *answer.misses]
    return [_flat(i, offer) for i, offer in enumerate(ranked, start=1)]


def _flat(rank: int, offer: Offer) -> Mapping[str, object]:
    c = offer.candidate
    decode, first = c.speed.decode, c.speed.ttft_ms
    return {
        "rank": rank if offer.status == "meets" else None,
        "status": offer.status,
        "device": offer.device.id,
        "name": offer.device.name,
        "count": offer.device.count,
        "model": c.card.id,
        "filetype": c.filetype.id,
        "verdict": c.verdict,
        "users": c.plan.users,
        "n_ctx": c.plan.n_ctx,
        "needs_bytes": c.plan.parts[0].total,
        "budget_bytes": c.plan.parts[0].budget,
        "largest_ctx": c.largest_ctx,
        "decode_tok_s": decode and decode.value,
        "decode_tok_s_low": decode and decode.low,
        "decode_tok_s_high": decode and decode.high,
        "decode_basis": decode and decode.basis,
        "ttft_ms": first and first.value,
        "ttft_ms_low": first and first.low,
        "ttft_ms_high": first and first.high,
        "whole_machine": is_machine(offer.device),
        "price_usd": offer.price.usd,
        "price_date": offer.price.date,
        "price_note": offer.price.note,
        "watts": offer.device.watts,
        "usd_per_million_tokens": offer.cost.total,
        "price_part": offer.cost.price,
        "power_part": offer.cost.power,
        "misses": "; ".join(m.text for m in offer.misses),
        "unknown": "; ".join(offer.unknown),
        "doubts": "; ".join(offer.doubts),
    }
