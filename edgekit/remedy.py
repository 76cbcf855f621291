"""What would make a model fit that does not, each with the option that asks for it.

Only what was tried and fits is named. The order is that of effort: another context, fewer users,
some layers on the host, more of the same card, another device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgekit import wording
from edgekit.candidate import NO_TARGETS, Candidate, Targets
from edgekit.device_group import group
from edgekit.facts import Device
from edgekit.fit import cheapest
from edgekit.search import FLOOR_CTX_PER_USER, GOOD_LOSS, Search
from edgekit.units import format_count

MOST_CARDS: Final = 8


@dataclass(frozen=True, slots=True)
class Remedy:
    """One way out; `option` is what to pass to the same command for it."""

    text: str
    option: str


def remedies(
    rows: Sequence[Candidate],
    *,
    n_ctx: int | None = None,
    filetype: str | None = None,
    targets: Targets = NO_TARGETS,
) -> tuple[Remedy, ...]:
    """Ways out for the rows of one model and device, the nearest first; () where one fits.

    `n_ctx`, `filetype` and `targets` are what was asked for.
    """
    best = rows[0]
    if best.verdict == "fits":
        return ()
    found = []
    if best.binding == "context":
        most = best.card.n_ctx_train * best.plan.users
        found.append(Remedy(f"{format_count(most)} tokens are the most it can use", _ctx(most)))
    elif best.binding != "engine":
        if targets == NO_TARGETS:
            found += _shorter(rows)
        if n_ctx is None:
            found += _fewer_users(best, filetype, targets)
        if targets == NO_TARGETS:
            found += _spilled(best)
        found += _more_cards(best, n_ctx, filetype, targets)
    return (*found, *_elsewhere(best, n_ctx, filetype, targets))


def _ctx(tokens: int) -> str:
    return f"--ctx {tokens}"


def _shorter(rows: Sequence[Candidate]) -> list[Remedy]:
    """The largest context, at a file type that keeps quality if any does."""
    least = min(FLOOR_CTX_PER_USER, rows[0].card.n_ctx_train)
    able = [c for c in rows if least <= c.largest_ctx < c.plan.n_ctx and c.filetype.automatic]
    if not able:
        return []
    good = [c for c in able if c.filetype.loss <= GOOD_LOSS] or able
    c = max(good, key=lambda c: (c.largest_ctx, -c.filetype.loss))
    text = f"{c.filetype.id} fits {wording.shared(c.largest_ctx, c.plan.users)}"
    return [Remedy(text, f"--filetype {c.filetype.id} {_ctx(c.largest_ctx)}")]


def _fewer_users(best: Candidate, filetype: str | None, targets: Targets) -> list[Remedy]:
    """The most users that fit with a useful context each."""
    for users in range(best.plan.users - 1, 0, -1):
        picked = Search(best.card, best.device, users, targets=targets).pick(None, filetype)
        if picked is not None and picked.verdict == "fits":
            kind = picked.filetype.id
            text = f"{kind} fits {wording.shared(picked.plan.n_ctx, users)}"
            return [Remedy(text, f"--users {users}")]
    return []


def _spilled(best: Candidate) -> list[Remedy]:
    plan = best.plan
    if best.verdict != "tight" or len(plan.parts) < 2 or plan.n_gpu_layers >= plan.n_layers:
        return []
    pace = best.speed.decode
    about = f", about {pace.value:.1f} tok/s a user" if pace else ""
    text = f"{best.filetype.id} with {plan.n_gpu_layers} of {plan.n_layers} layers on the device"
    option = f"--filetype {best.filetype.id} --offload {plan.n_gpu_layers}"
    return [Remedy(f"{text}{about}", option)]


def _more_cards(
    best: Candidate, n_ctx: int | None, filetype: str | None, targets: Targets
) -> list[Remedy]:
    device = best.device
    if device.memory_kind != "dedicated" or device.count > 1 or device.probed:
        return []
    for count in range(2, MOST_CARDS + 1):
        picked = _fit(best, group([device] * count), n_ctx, filetype, targets)
        if picked is not None:
            text = f"{count} of this card hold {_at(picked)}"
            return [Remedy(text, f"--gpus {count}")]
    return []


def _elsewhere(
    best: Candidate, n_ctx: int | None, filetype: str | None, targets: Targets
) -> list[Remedy]:
    users = best.plan.users
    found = cheapest(best.card, n_ctx=n_ctx, users=users, filetype=filetype, targets=targets)
    if found is None:
        return []
    text = f"cheapest listed device that fits: {found.device.name}, {_at(found)}"
    if found.device.price_usd is not None:
        text += f", about {found.device.price_usd:,.0f} USD"
    return [Remedy(text, f"--device {found.device.id}")]


def _fit(
    best: Candidate, device: Device, n_ctx: int | None, filetype: str | None, targets: Targets
) -> Candidate | None:
    search = Search(best.card, device, best.plan.users, targets=targets)
    picked = search.pick(n_ctx, filetype)
    return picked if picked is not None and picked.verdict == "fits" else None


def _at(c: Candidate) -> str:
    return f"{c.filetype.id} at {format_count(c.plan.n_ctx)} tokens"
