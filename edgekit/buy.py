"""Which devices meet a need, cheapest first, and what the others miss.

Each device is tried as it is sold, from its smallest memory and one card upwards, up to the first
that holds the model and is fast enough. Split layers add memory and no speed, but memory may hold
a file type that is faster there. A device that is not known to meet everything is never ranked as
if it did: without a price it stands behind those with one, and against a budget it stays open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from edgekit import fit
from edgekit.candidate import Candidate
from edgekit.catalogue import find_device, load_devices
from edgekit.device_group import group
from edgekit.errors import UsageError
from edgekit.facts import Device, ModelCard
from edgekit.price import Price, price_of
from edgekit.running_cost import Assumptions, Cost, cost
from edgekit.speed import Estimate
from edgekit.units import format_bytes, format_count
from edgekit.wording import gib

Status = Literal["meets", "open", "misses"]

NO_SERVERS: Final = {"phone": "a phone", "mcu": "a microcontroller"}
_SLICE: Final = "-mig-"
"""A slice of a card has a plan of its own in the catalogue, but nobody sells it."""

CURED: Final = 8
"""So many of the nearest misses are tried at file types that lose more than Q4_K_M."""


@dataclass(frozen=True, slots=True)
class Need:
    """What is asked for; None asks nothing.

    `n_ctx` is shared by all users. `tok_s` is for each user while all decode, `ttft_ms` the
    median while all send at once. `sure` asks the far end of each range, not its middle.
    """

    card: ModelCard
    users: int
    n_ctx: int
    ttft_ms: float | None = None
    tok_s: float | None = None
    budget_usd: float | None = None
    watts: float | None = None
    filetype: str | None = None
    sure: bool = False
    gpus: int = 4


@dataclass(frozen=True, slots=True)
class Miss:
    """One thing a device misses. `shortfall` is relative: 0.1 is a tenth; None has no measure."""

    what: str
    text: str
    shortfall: float | None


@dataclass(frozen=True, slots=True)
class Offer:
    """One device, or several of it, held against a need.

    `unknown` names what was asked and cannot be told; `doubts` what holds in the middle of the
    range and not at its far end.
    """

    base: str
    device: Device
    candidate: Candidate
    price: Price
    cost: Cost
    misses: tuple[Miss, ...]
    unknown: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def status(self) -> Status:
        if self.misses:
            return "misses"
        return "open" if self.unknown else "meets"


@dataclass(frozen=True, slots=True)
class Answer:
    """`meets`: priced ones, cheapest first, then those without a price, smallest first.

    `undecided`: nothing known against them, but something asked is not known. `misses`: the
    nearest first.
    """

    need: Need
    assumed: Assumptions
    floor: str
    meets: tuple[Offer, ...]
    undecided: tuple[Offer, ...]
    misses: tuple[Offer, ...]

    @property
    def nearest(self) -> tuple[Offer, ...]:
        """The nearest miss of each device, nearest first.

        Two cards that are too few are no news where three of them do.
        """
        first: dict[str, Offer] = {}
        done = {offer.base for offer in (*self.meets, *self.undecided)}
        for offer in self.misses:
            if offer.device.count == 1 or offer.base not in done:
                first.setdefault(offer.base, offer)
        return tuple(first.values())


def default_ctx(card: ModelCard, users: int) -> int:
    """The context that `fit` aims at: useful to an agent, and 4,096 tokens for each user."""
    least = min(fit.FLOOR_CTX_PER_USER, card.n_ctx_train) * users
    return max(least, min(card.n_ctx_train, fit.USEFUL_CTX))


def buy(
    need: Need, assumed: Assumptions | None = None, devices: Iterable[Device] | None = None
) -> Answer:
    """Hold every device of the catalogue (or those given) against a need.

    Without a file type the best that fits and is fast enough is taken, of those that lose no more
    than Q4_K_M.

    Raises:
        UsageError: a context beyond the one the model was trained on.
        MissingInputError: no such file type.
        BadDataError: see `memory.predict`.
    """
    most = need.card.n_ctx_train * need.users
    if need.n_ctx > most:
        raise UsageError(
            f"{need.card.id} was trained on {need.card.n_ctx_train:,} tokens; {need.users} "
            f"{'user' if need.users == 1 else 'users'} can use at most {most:,}",
            code="ctx_beyond_training",
            hint="pass a smaller --ctx",
        )
    assumed = assumed or Assumptions()
    found = load_devices().values() if devices is None else devices
    known = [device for device in found if not device.probed and _SLICE not in device.id]
    floor = _floor(need, known)
    offers = [offer for device in known for offer in _tried(need, device, floor, assumed)]
    misses = sorted((o for o in offers if o.status == "misses"), key=_distance)
    return Answer(
        need,
        assumed,
        floor,
        tuple(sorted((o for o in offers if o.status == "meets"), key=_rank)),
        tuple(sorted((o for o in offers if o.status == "open"), key=_rank)),
        (*(_cured(need, offer) for offer in misses[:CURED]), *misses[CURED:]),
    )


def variants(device: Device, gpus: int) -> Iterator[Device]:
    """A device as it can be bought, smallest memory first: its sizes, or 1, 2, … cards."""
    if device.memory_options_gib:
        for size in sorted(device.memory_options_gib):
            yield find_device(f"{device.id}@{size}")
        return
    yield device
    if device.memory_kind == "dedicated" and device.kind not in NO_SERVERS:
        for count in range(2, gpus + 1):
            yield group([device] * count)


def _tried(need: Need, device: Device, floor: str, assumed: Assumptions) -> Iterator[Offer]:
    """Offers of one device, up to the first that holds the model and is fast enough.

    Price and power end nothing: more memory costs no less of them.
    """
    for variant in variants(device, need.gpus):
        offer = _offer(need, device.id, variant, floor, assumed)
        yield offer
        if not {miss.what for miss in offer.misses} & {"memory", "speed", "ttft"}:
            return


def _offer(need: Need, base: str, device: Device, floor: str, assumed: Assumptions) -> Offer:
    candidate = _candidate(need, device, floor)
    price = price_of(device)
    missed, unknown, doubts = _speed_misses(need, _runnable(need, candidate))
    misses = [*_fit_misses(candidate), *missed, *_bounds(need, device, price)]
    if need.budget_usd is not None and price.usd is None:
        unknown.append("price")
    if need.watts is not None and device.watts is None:
        unknown.append("power draw")
    return Offer(
        base,
        device,
        candidate,
        price,
        cost(price.usd, device.watts, candidate.speed, assumed),
        tuple(misses),
        tuple(unknown),
        tuple(doubts),
    )


def _candidate(need: Need, device: Device, floor: str) -> Candidate:
    """The file type for a device: what `fit` takes, or the best that is fast enough."""
    least = _judged(need, device, floor)[0]
    if need.filetype is not None or least.verdict != "fits":
        return least
    first, *rest = _judged(need, device, None)
    good = [first, *(c for c in rest if c.verdict == "fits" and _good(c))]
    return min(good, key=lambda c: sum(m.shortfall or 0 for m in _speed_misses(need, c)[0]))


def _judged(need: Need, device: Device, filetype: str | None) -> list[Candidate]:
    return fit.candidates(need.card, device, users=need.users, n_ctx=need.n_ctx, filetype=filetype)


def _runnable(need: Need, c: Candidate) -> Candidate:
    """The candidate at the context that fits, to say how fast it would be at that."""
    if c.verdict == "fits" or not 0 < c.largest_ctx < c.plan.n_ctx:
        return c
    if need.tok_s is None and need.ttft_ms is None:
        return c
    shorter = replace(need, n_ctx=c.largest_ctx)
    return _judged(shorter, c.device, c.filetype.id)[0]


def _good(c: Candidate) -> bool:
    return c.filetype.automatic and c.filetype.loss <= fit.GOOD_LOSS


def _floor(need: Need, devices: Sequence[Device]) -> str:
    """The smallest file type that may be chosen without being named."""
    if need.filetype is not None or not devices:
        return need.filetype or "Q4_K_M"
    good = [c for c in _judged(need, devices[0], None) if _good(c)]
    return min(good, key=lambda c: c.file_bytes).filetype.id


def _fit_misses(c: Candidate) -> list[Miss]:
    if c.device.kind in NO_SERVERS:
        return [Miss("kind", f"{NO_SERVERS[c.device.kind]} is no machine to serve from", None)]
    if c.verdict == "fits":
        return []
    short = c.missing_bytes
    if c.binding != "memory" or short is None or short <= 0:
        return [Miss("memory", f"{c.filetype.id} {c.reason}", None)]
    text = f"{gib(short)} short at this context"
    if 0 < c.largest_ctx < c.plan.n_ctx:
        text += f": {c.filetype.id} would fit with {format_count(c.largest_ctx)} tokens"
    return [Miss("memory", text, short / (c.plan.parts[0].budget or 1))]


def _speed_misses(need: Need, c: Candidate) -> tuple[list[Miss], list[str], list[str]]:
    """What is too slow, what cannot be told, and what is so only in the middle of the range."""
    misses: list[Miss] = []
    unknown: list[str] = []
    doubts: list[str] = []
    decode = c.speed.decode if c.verdict == "fits" else None
    first = c.speed.ttft_ms if c.verdict == "fits" else None
    if need.tok_s is not None:
        if decode is None:
            unknown.append("speed")
        elif _pace(decode, sure=need.sure) < need.tok_s:
            got = _pace(decode, sure=need.sure)
            text = f"{_figure(got)} tok/s a user{_end(need)}, asked {need.tok_s:g}"
            misses.append(Miss("speed", text, need.tok_s / got - 1 if got else None))
        elif decode.low < need.tok_s:
            doubts.append(f"{_figure(decode.low)} tok/s at the low end of the range")
    if need.ttft_ms is not None:
        if first is None:
            unknown.append("time to first token")
        elif _wait(first, sure=need.sure) > need.ttft_ms:
            got = _wait(first, sure=need.sure)
            text = f"first token after {got:,.0f} ms{_end(need)}, asked {need.ttft_ms:,.0f}"
            misses.append(Miss("ttft", text, got / need.ttft_ms - 1))
        elif first.high > need.ttft_ms:
            doubts.append(f"first token after {first.high:,.0f} ms at the slow end of the range")
    return misses, unknown, doubts


def _bounds(need: Need, device: Device, price: Price) -> list[Miss]:
    found = []
    if need.budget_usd is not None and price.usd is not None and price.usd > need.budget_usd:
        over = price.usd - need.budget_usd
        text = f"{price.usd:,.0f} USD, {over:,.0f} over the budget"
        found.append(Miss("budget", text, over / need.budget_usd if need.budget_usd else None))
    if need.watts is not None and device.watts is not None and device.watts > need.watts:
        text = f"{device.watts:g} W, asked {need.watts:g}"
        found.append(Miss("watts", text, device.watts / need.watts - 1 if need.watts else None))
    return found


def _cured(need: Need, offer: Offer) -> Offer:
    """Say which smaller file type would fit after all, at what loss."""
    misses = list(offer.misses)
    if need.filetype is None and misses[0].what == "memory":
        best = _judged(need, offer.device, None)[0]
        if best.verdict == "fits":
            text = (
                f"{misses[0].text}; {best.filetype.id} ({format_bytes(best.file_bytes)}) would "
                f"fit, expected to lose more (KL {best.filetype.loss:.3f})"
            )
            misses[0] = replace(misses[0], text=text)
    return replace(offer, misses=tuple(misses))


def _pace(estimate: Estimate, *, sure: bool) -> float:
    return estimate.low if sure else estimate.value


def _wait(estimate: Estimate, *, sure: bool) -> float:
    return estimate.high if sure else estimate.value


def _end(need: Need) -> str:
    return " at the slow end of the range" if need.sure else ""


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _rank(o: Offer) -> tuple[float, float, float, str]:
    """Price, then memory where there is none, then power, then name."""
    room = o.candidate.plan.parts[0].budget or 0
    price = float("inf") if o.price.usd is None else o.price.usd
    size = 0.0 if o.price.usd is not None else float(room)
    return price, size, o.device.watts or float("inf"), o.device.id


def _distance(o: Offer) -> tuple[int, float, float, str]:
    worst = max(float("inf") if m.shortfall is None else m.shortfall for m in o.misses)
    price = float("inf") if o.price.usd is None else o.price.usd
    return len(o.misses) + len(o.unknown), worst, price, o.device.id
