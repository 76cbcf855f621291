"""Models side by side on one device, as somebody reads them who has to decide.

Figures come from `fit`, facts from the catalogue. A verdict says "deploy" only where the file
type that `fit` takes fits whole, has four bits or more, and may be used commercially.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from edgekit import fit
from edgekit.candidate import Candidate
from edgekit.facts import AbsentModel, Device, Licence, ModelCard
from edgekit.price import Price, price_of
from edgekit.running_cost import Assumptions, Cost, cost
from edgekit.units import format_count
from edgekit.wording import gib

Verdict = Literal["deploy", "evaluate only", "not deployable here today"]

DEPLOY: Final = "deploy"
EVALUATE: Final = "evaluate only"
NOT_HERE: Final = "not deployable here today"

TRY_LOSS: Final = 0.08
"""Every file type of four bits loses less than this, every one of three bits more."""


@dataclass(frozen=True, slots=True)
class AirGap:
    """What stands between the weights and a machine without a network.

    `account` is whether the hub wants one, and consent, before it hands them out; None is not
    known. `text_shipped` is whether the licence's text is here to travel with them. `stick_bytes`
    is the GGUF at the file type compared.
    """

    account: bool | None
    acceptance: bool
    text_shipped: bool
    stick_bytes: int
    suitable: bool | None
    why: str


@dataclass(frozen=True, slots=True)
class Column:
    """One model on the device. `asked` is the name it stands for, `rows` every file type."""

    asked: str
    card: ModelCard
    best: Candidate
    rows: tuple[Candidate, ...]
    cost: Cost
    air_gap: AirGap
    verdict: Verdict
    why: str
    conditions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All columns in the order asked, and the names that no weights carry."""

    device: Device
    price: Price
    users: int
    n_ctx: int | None
    assumed: Assumptions
    absent: tuple[AbsentModel, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked under one name: the model itself, or the nearest to a name without weights."""

    asked: str
    absent: AbsentModel | None
    cards: tuple[ModelCard, ...]
    filetype: str | None = None


def compare(
    wanted: Sequence[Wanted],
    device: Device,
    *,
    users: int = 1,
    n_ctx: int | None = None,
    assumed: Assumptions | None = None,
) -> Comparison:
    """Judge each model on the device; a model that stands under two names comes once.

    Raises what `fit.candidates` raises.
    """
    assumed = assumed or Assumptions()
    price = price_of(device)
    columns: dict[tuple[str, str | None], Column] = {}
    for entry in wanted:
        for card in entry.cards:
            key = (card.id, entry.filetype)
            if key not in columns:
                rows = fit.candidates(
                    card, device, users=users, n_ctx=n_ctx, filetype=entry.filetype
                )
                columns[key] = _column(entry.asked, card, rows, price, assumed)
    absent = {entry.absent.id: entry.absent for entry in wanted if entry.absent is not None}
    return Comparison(
        device, price, users, n_ctx, assumed, tuple(absent.values()), tuple(columns.values())
    )


def _column(
    asked: str, card: ModelCard, rows: Sequence[Candidate], price: Price, assumed: Assumptions
) -> Column:
    best = yardstick(rows)
    verdict, why = decide(card.licence, best)
    return Column(
        asked=asked,
        card=card,
        best=best,
        rows=tuple(rows),
        cost=cost(price.usd, best.device.watts, best.speed, assumed),
        air_gap=air_gap(card, best.file_bytes),
        verdict=verdict,
        why=why,
        conditions=conditions(card),
    )


def yardstick(rows: Sequence[Candidate]) -> Candidate:
    """The row to show: the choice, or where nothing fits the smallest that loses no more than
    Q4_K_M, so that models are held against each other at one quality."""
    if rows[0].verdict == "fits":
        return rows[0]
    good = [c for c in rows if c.filetype.automatic and c.filetype.loss <= fit.GOOD_LOSS]
    return min(good, key=lambda c: c.file_bytes) if good else rows[0]


def decide(licence: Licence, best: Candidate) -> tuple[Verdict, str]:
    """The verdict on one model, and why."""
    if best.verdict != "fits":
        return NOT_HERE, _does_not_fit(best)
    kind, spare = best.filetype, _spare(best)
    fits = f"{kind.id} fits with {spare} to spare" if spare else f"{kind.id} fits"
    if licence.commercial_use is False:
        return EVALUATE, f"{fits}, but the licence allows no commercial use"
    if kind.loss > fit.GOOD_LOSS:
        fits = f"only {kind.id} fits, expected to lose more than Q4_K_M (KL {kind.loss:.3f})"
    if kind.loss > TRY_LOSS:
        return EVALUATE, f"{fits}: try it on your own tasks first"
    if licence.commercial_use is None:
        return EVALUATE, f"{fits}, but nobody has read what the licence allows"
    return DEPLOY, fits


def _does_not_fit(best: Candidate) -> str:
    need, budget = best.plan.parts[0].total, best.plan.parts[0].budget
    if best.binding != "memory":
        return best.reason
    if best.missing_bytes is None or budget is None or best.missing_bytes <= 0:
        return f"{best.filetype.id} {best.reason}"
    whole = budget + best.missing_bytes
    text = f"needs {gib(max(need, whole))} at {best.filetype.id}, {gib(budget)} may be used"
    if best.verdict == "tight" and len(best.plan.parts) > 1:
        text += (
            f"; {best.plan.n_gpu_layers} of {best.plan.n_layers} layers go in, many times slower"
        )
    if 0 < best.largest_ctx < best.plan.n_ctx:
        text += f"; fits with {format_count(best.largest_ctx)} tokens"
    return text


def _spare(best: Candidate) -> str:
    missing = best.missing_bytes
    return gib(-missing) if missing is not None and missing < 0 else ""


def conditions(card: ModelCard) -> tuple[str, ...]:
    """What has to be done or must hold before it may be deployed."""
    found = []
    if card.gated:
        found.append("consent on the hub")
    if card.licence.acceptance_required:
        found.append("accept the licence")
    if card.licence.mau_limit is not None:
        found.append(f"at most {_millions(card.licence.mau_limit)} users a month")
    if card.licence.eu_clause is not None:
        found.append("not for the EU")
    return tuple(found)


def _millions(n: int) -> str:
    return f"{n // 10**6} million" if n % 10**6 == 0 else f"{n:,}"


def air_gap(card: ModelCard, stick_bytes: int) -> AirGap:
    """Whether the weights can be carried to a machine without a network, and what it takes.

    Suitable is True where nobody is asked for an account or consent and the licence's text is
    here to travel along, False where no source is known or no hands it out, else None: it can be
    done once the conditions are met.
    """
    account = card.gated
    acceptance, shipped = card.licence.acceptance_required, card.licence.text is not None
    if all(source.kind == "builtin" for source in card.sources) and card.sources:
        return AirGap(False, acceptance, shipped, stick_bytes, True, "built in")
    if not card.sources:
        why = "no place to fetch it from is known; bring the weights as a folder"
        return AirGap(account, acceptance, shipped, stick_bytes, False, why)
    needs = []
    if account:
        needs.append("fetched once with an account and consent on the hub")
    elif account is None:
        needs.append("whether the hub asks for consent is not known")
    if acceptance:
        needs.append("licence accepted before the fetch")
    if not shipped:
        needs.append("bring the licence's text along, it is not shipped here")
    suitable = None if needs else True
    return AirGap(
        account,
        acceptance,
        shipped,
        stick_bytes,
        suitable,
        "; ".join(needs) or "fetched without an account; the licence's text travels along",
    )
