"""Several models on one machine: who gets which memory, and what each one is there for.

Models are planned in the order in which they are named, each with the memory that the others
leave: the earlier ones what they take, the later ones what they need at least. One that does not
fit beside them is planned for the whole device, and takes turns: the server unloads others for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit import fit
from edgekit.budget import MARGIN_BYTES, device_budget, host_budget
from edgekit.errors import NoDeviceError, UsageError
from edgekit.facts import Device, ModelCard
from edgekit.fit import Choice
from edgekit.memory import MemoryPlan
from edgekit.units import format_gib

ROLES = ("chat", "completion", "embeddings", "rerank")
"""Of the server: what a model is there for."""
RESERVE_FILETYPE = "Q4_K_M"
"""What room is kept at for a model that is planned later; at the least useful context."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model to be deployed, as the user asked for it. Empty `roles`: whatever it can do."""

    card: ModelCard
    users: int
    n_ctx: int | None = None
    filetype: str | None = None
    n_gpu_layers: int | None = None
    roles: tuple[str, ...] = ()
    pinned: bool = False

    def choose(self, device: Device) -> Choice:
        """Return the choice for a device. Raises what `fit.choose` raises."""
        return fit.choose(
            self.card,
            device,
            users=self.users,
            n_ctx=self.n_ctx,
            filetype=self.filetype,
            n_gpu_layers=self.n_gpu_layers,
        )


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several models gets. `together`: it can stay loaded beside the others."""

    wanted: Wanted
    choice: Choice
    together: bool
    reason: str


def with_roles(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Say what each model is for where nobody did: code to those trained to fill in.

    Tokens for it are in many vocabularies, so the server cannot tell. Where all or none were
    trained for it, or roles were given, they stay as they are.
    """
    fills = [model.card.fim is True for model in wanted]
    if any(model.roles for model in wanted) or all(fills) or not any(fills):
        return list(wanted)
    return [
        replace(model, roles=("completion",) if able else ("chat",))
        for model, able in zip(wanted, fills, strict=True)
    ]


def share(wanted: Sequence[Wanted], device: Device) -> list[Share]:
    """Choose a file type and a context for each model, see the module's docstring.

    Raises NoDeviceError when one does not fit alone (beside the pinned ones), and what
    `fit.choose` raises.
    """
    if len(wanted) == 1:
        return [Share(wanted[0], wanted[0].choose(device), True, "the only model")]
    kept: list[Share] = []
    for i, model in enumerate(wanted):
        taken = [s.choice.plan for s in kept if s.together]
        needs = [n for later in wanted[i + 1 :] if (n := least(later, device)) is not None]
        found = _beside(model, device, taken, needs)
        if found is None:
            pinned = [s.choice.plan for s in kept if s.wanted.pinned]
            choice = model.choose(left_after(device, pinned))
            others = ", ".join(w.card.id for w in wanted if w is not model and not w.pinned)
            reason = f"no room beside {others}: loaded when asked for, and others make room then"
            kept.append(Share(model, choice, False, reason))
        else:
            choice, reason = found
            alone = model.choose(device).filetype
            better = f"; alone it would be {alone}" if alone != choice.filetype else ""
            kept.append(Share(model, choice, True, reason + better))
    return kept


def _beside(
    model: Wanted, device: Device, taken: Sequence[MemoryPlan], needs: Sequence[MemoryPlan]
) -> tuple[Choice, str] | None:
    """Choose with the memory that the others leave. The last named is the first to get none.

    Quality is not given up for company: rather than go below Q4_K_M, models take turns.
    """
    worst = max(model.choose(device).candidate.filetype.loss, fit.GOOD_LOSS)
    for n_kept in range(len(needs), -1, -1):
        left = left_after(device, [*taken, *needs[:n_kept]])
        try:
            choice = model.choose(left)
        except NoDeviceError:
            continue
        if choice.candidate.filetype.loss > worst:
            continue
        budget = device_budget(left).bytes
        within = "" if budget is None else f" within {format_gib(budget)}"
        return choice, f"beside the others{within}"
    return None


def least(model: Wanted, device: Device) -> MemoryPlan | None:
    """Return what to keep for a model that comes later; None: nothing useful fits at all."""
    floor = min(fit.FLOOR_CTX_PER_USER, model.card.n_ctx_train) * model.users
    modest = replace(model, filetype=model.filetype or RESERVE_FILETYPE, n_ctx=model.n_ctx or floor)
    try:
        return modest.choose(device).plan
    except (NoDeviceError, UsageError):
        return None


def left_after(device: Device, plans: Sequence[MemoryPlan]) -> Device:
    """Return the device with the memory that these plans leave, at the same spare for all."""
    budget = device_budget(device).bytes
    if budget is None or not plans:
        return device
    left = max(0, budget - sum(plan.parts[0].total for plan in plans))
    host = host_budget(device).bytes
    if host is not None and device.memory_kind == "dedicated":
        host = max(0, host - sum(part.total for plan in plans for part in plan.parts[1:]))
        return replace(device, free_bytes=_with_margin(left), host_bytes=_with_margin(host))
    return replace(device, free_bytes=_with_margin(left))


def _with_margin(budget: int) -> int:
    """Return the memory of which `budget` is left after the margin of budget.py."""
    return min(budget + MARGIN_BYTES, -(-budget * 8 // 7))


def roles_of(given: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read options of the form NAME=ROLE or NAME=ROLE,ROLE. Raises UsageError."""
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, separator, roles = text.rpartition("=")
        if not separator or name not in names:
            raise UsageError(
                f"--role {text}: write NAME=ROLE with one of {', '.join(names)}",
                code="bad_role",
                hint=f"roles are {', '.join(ROLES)}",
            )
        found[name] = (*found.get(name, ()), *checked_roles(name, roles.split(",")))
    return found


def checked_roles(name: str, roles: Sequence[str]) -> tuple[str, ...]:
    """Return the roles. Raises UsageError for one that is none."""
    for role in roles:
        if role not in ROLES:
            raise UsageError(
                f"{name}: {role!r} is no role",
                code="bad_role",
                hint=f"roles are {', '.join(ROLES)}",
            )
    return tuple(roles)


def named(given: Sequence[str], names: Sequence[str], option: str) -> frozenset[str]:
    """Return these names. Raises UsageError for one that is not among `names`."""
    for name in given:
        if name not in names:
            raise UsageError(
                f"{option} {name}: none of the models {', '.join(names)}", code="bad_model_name"
            )
    return frozenset(given)


def loaded_at_start(
    sizes: Mapping[str, int], first: Sequence[str], budget: int | None
) -> frozenset[str]:
    """Return `first`, and after them whoever still fits, in order."""
    chosen = set(first)
    left = None if budget is None else budget - sum(sizes[name] for name in chosen)
    for name, size in sizes.items():
        if name not in chosen and left is not None and size <= left:
            chosen.add(name)
            left -= size
    return frozenset(chosen)
