"""Which file type and context a device should run a model at, and why that one.

`n_ctx` is always the number of KV cells that all users share (unified KV): one user may take all
of them, up to the context the model was trained on. `choose` picks the least expected quality
loss that fits as asked; `candidates` says for every file type what becomes of it and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from edgekit import memory, wording
from edgekit.candidate import NO_TARGETS, Candidate, Targets, Verdict
from edgekit.catalogue import find_filetype, load_devices
from edgekit.errors import EdgekitError, NoDeviceError, UsageError
from edgekit.facts import Device, ModelCard
from edgekit.fit_record import fit_record
from edgekit.price import price_of
from edgekit.search import (
    FLOOR_CTX_PER_USER,
    GOOD_LOSS,
    Q8_FLOOR_TOK_S,
    USEFUL_CTX,
    Search,
    common,
)
from edgekit.this_machine import device_from_machine

__all__ = [
    "FLOOR_CTX_PER_USER",
    "GOOD_LOSS",
    "USEFUL_CTX",
    "Candidate",
    "Choice",
    "Lost",
    "Targets",
    "candidates",
    "cheapest",
    "choose",
    "device_from_machine",
    "fit_record",
    "survey",
]


@dataclass(frozen=True, slots=True)
class Lost:
    """A file type that was not chosen, and why."""

    filetype: str
    n_ctx: int
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The pick, its reason, those that fit too (`runners_up`) and those that do not."""

    filetype: str
    n_ctx: int
    users: int
    n_gpu_layers: int
    reason: str
    plan: memory.MemoryPlan
    runners_up: tuple[Lost, ...]
    rejected: tuple[Lost, ...]
    candidate: Candidate


def candidates(
    card: ModelCard,
    device: Device,
    *,
    users: int = 1,
    n_ctx: int | None = None,
    filetype: str | None = None,
    n_gpu_layers: int | None = None,
    kv_type: str = "f16",
    targets: Targets = NO_TARGETS,
) -> list[Candidate]:
    """Every file type (or the one named) at one context, the choice first if there is one.

    Without `n_ctx` the context is the one `choose` would take, else the least useful one. After
    the choice come what fits, better quality first; what is tight and what does not fit, nearest
    to fitting first.

    Raises:
        MissingInputError: no such file type.
        BadDataError, UsageError: see `memory.predict`; UsageError for an unprobed `this`.
    """
    return _judged(Search(card, device, users, n_gpu_layers, kv_type, targets), n_ctx, filetype)


def _judged(search: Search, n_ctx: int | None, filetype: str | None) -> list[Candidate]:
    best = search.pick(n_ctx, filetype)
    ctx = best.plan.n_ctx if best else (n_ctx or search.floor)
    kinds = (find_filetype(filetype),) if filetype else common()
    rows = [search.at(kind.id, ctx) for kind in kinds]
    rows.sort(key=_order)
    if best is None:
        return rows
    reason = _because(best, search, asked_for=filetype is not None, n_ctx=n_ctx)
    rest = [c for c in rows if c.filetype.id != best.filetype.id]
    return [replace(best, reason=reason), *rest]


def choose(
    card: ModelCard,
    device: Device,
    *,
    users: int = 1,
    n_ctx: int | None = None,
    filetype: str | None = None,
    n_gpu_layers: int | None = None,
    kv_type: str = "f16",
    targets: Targets = NO_TARGETS,
) -> Choice:
    """The file type and context of least expected loss that fit.

    A context or file type that is given is kept. Without a context: the useful one, shortened
    in steps before quality drops below Q4_K_M, then stretched to what the device holds. Layers
    stay on the host only when `n_gpu_layers` asks for it.

    Raises:
        NoDeviceError: nothing fits; the hint says what would.
        UsageError: a context beyond the one the model was trained on.
        MissingInputError, BadDataError, UsageError: see `candidates`.
    """
    search = Search(card, device, users, n_gpu_layers, kv_type, targets)
    best = search.pick(n_ctx, filetype)
    if best is None:
        raise _nothing_fits(_judged(search, n_ctx, filetype))
    lost = [
        _lost(search.at(kind.id, best.plan.n_ctx), best)
        for kind in common()
        if kind.id != best.filetype.id
    ]
    best = replace(best, reason=_because(best, search, asked_for=filetype is not None, n_ctx=n_ctx))
    return Choice(
        filetype=best.filetype.id,
        n_ctx=best.plan.n_ctx,
        users=users,
        n_gpu_layers=best.plan.n_gpu_layers,
        reason=best.reason,
        plan=best.plan,
        runners_up=tuple(x for x in lost if x.verdict == "fits"),
        rejected=tuple(x for x in lost if x.verdict != "fits"),
        candidate=best,
    )


def survey(
    cards: Iterable[ModelCard],
    devices: Sequence[Device],
    contexts: Sequence[int | None],
    *,
    users: int = 1,
    filetype: str | None = None,
    targets: Targets = NO_TARGETS,
) -> Iterator[Candidate]:
    """The best of each model on each device at each context, whether it fits or not.

    What `choose` would choose, else the nearest to fitting; without the comparison of all file
    types, so that tables of thousands are made in seconds. `None` is an open context.

    Raises what `candidates` raises.
    """
    for card in cards:
        for device in devices:
            search = Search(card, device, users, targets=targets)
            for n_ctx in contexts:
                yield search.best(n_ctx, filetype)


def cheapest(
    card: ModelCard,
    *,
    n_ctx: int | None = None,
    users: int = 1,
    filetype: str | None = None,
    targets: Targets = NO_TARGETS,
) -> Candidate | None:
    """The best on the cheapest device of the catalogue that fits it; None: none with a price does.

    Of those without a price nothing can be said here.
    """
    priced = [(price_of(d).usd, d.id, d) for d in load_devices().values() if not d.probed]
    known = sorted((usd, own, device) for usd, own, device in priced if usd is not None)
    devices = [device for _, _, device in known]
    found = survey([card], devices, [n_ctx], users=users, filetype=filetype, targets=targets)
    return next((c for c in found if c.verdict == "fits"), None)


def _order(c: Candidate) -> tuple[int, float]:
    if c.verdict == "fits":
        return 0, c.filetype.loss
    return 1 if c.verdict == "tight" else 2, float(c.missing_bytes or c.file_bytes)


def _because(best: Candidate, search: Search, *, asked_for: bool, n_ctx: int | None) -> str:
    """Why this one: what it fits, what it leaves, why the next better one lost."""
    if best.binding == "speed":
        return best.reason if asked_for else f"{best.reason}; nothing that fits is faster"
    better = None
    if not asked_for:
        known = [f for f in common() if f.loss < best.filetype.loss]
        rivals = [search.at(f.id, best.plan.n_ctx) for f in known if f.automatic]
        if rivals:
            better = _lost(rivals[-1], best).why
        elif known:
            better = f"{known[-1].id} is not taken: {known[-1].why_not_automatic}"
    return wording.why_chosen(
        best.plan,
        best.filetype,
        asked_for=asked_for,
        wanted_ctx=best.plan.n_ctx if n_ctx else search.target,
        better=better,
    )


def _lost(loser: Candidate, best: Candidate) -> Lost:
    kind, chosen = loser.filetype, best.filetype
    slow, fast = loser.speed.decode, best.speed.decode
    if loser.verdict != "fits":
        why = loser.reason
        if loser.binding == "memory" and (loser.missing_bytes or 0) > 0:
            why = wording.would_need(kind, loser.missing_bytes or 0, loser.largest_ctx)
    elif not kind.automatic and kind.why_not_automatic:
        why = kind.why_not_automatic
    elif kind.loss < chosen.loss and slow is not None and slow.value < Q8_FLOOR_TOK_S:
        why = wording.slower_for_nothing(kind, chosen, slow.value, Q8_FLOOR_TOK_S)
    elif kind.loss < chosen.loss:
        why = wording.fits_too(kind, chosen)
    else:
        gain = slow.value / fast.value - 1 if slow and fast else None
        why = wording.faster_but(kind, chosen, gain, loser.largest_ctx, best.plan.n_ctx)
    return Lost(kind.id, loser.plan.n_ctx, loser.verdict, why)


def _nothing_fits(rows: Sequence[Candidate]) -> EdgekitError:
    """The verdict for a device that cannot, with the nearest thing that can."""
    smallest = min(rows, key=lambda c: c.file_bytes)
    if smallest.binding == "context":
        return UsageError(smallest.reason, code="ctx_beyond_training", hint="pass a smaller --ctx")
    tight = max(
        (c for c in rows if c.verdict == "tight"),
        key=lambda c: c.speed.decode.value if c.speed.decode else 0.0,
        default=None,
    )
    shorter = [c for c in rows if 0 < c.largest_ctx < c.plan.n_ctx and c.filetype.automatic]
    hint = "a device with more memory, or a smaller model, is needed"
    if tight is not None:
        pace = tight.speed.decode
        about = f", about {pace.value:.1f} tok/s" if pace else ""
        plan = tight.plan
        hint = f"tight: {tight.filetype.id} {tight.reason}{about}"
        if len(plan.parts) > 1 and plan.n_gpu_layers < plan.n_layers:
            split = f"{plan.n_gpu_layers} of {plan.n_layers} layers on the device"
            hint = f"tight: {tight.filetype.id} with {split}{about}: pass --offload"
            hint += f" {plan.n_gpu_layers}"
    elif shorter:
        good = [c for c in shorter if c.filetype.loss <= GOOD_LOSS] or shorter
        nearest = max(good, key=lambda c: c.largest_ctx)
        hint = f"{nearest.filetype.id} fits at {nearest.largest_ctx:,} tokens: pass --ctx"
    least = f"even {smallest.filetype.id}" if len(rows) > 1 else smallest.filetype.id
    return NoDeviceError(
        f"{smallest.card.id} does not fit {smallest.device.name}: {least} {smallest.reason}",
        code="does_not_fit",
        hint=hint,
    )
