"""Which file type and context a device should run a model at, and why that one.

`n_ctx` is always the number of KV cells that all users share (unified KV): one user may take all
of them, up to the context the model was trained on. `choose` picks the least expected quality
loss that fits as asked; `candidates` says for every file type what becomes of it and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgekit import memory, wording
from edgekit.candidate import Candidate, Case, Verdict, judge
from edgekit.catalogue import find_filetype, load_filetypes
from edgekit.errors import EdgekitError, NoDeviceError, UsageError
from edgekit.facts import Device, FileType, ModelCard
from edgekit.fit_record import fit_record
from edgekit.this_machine import device_from_machine

__all__ = [
    "Candidate",
    "Choice",
    "Lost",
    "candidates",
    "choose",
    "device_from_machine",
    "fit_record",
]

USEFUL_CTX = 32768
"""A context that holds the files of an agent's task; longer ones only where nothing is lost."""

FLOOR_CTX_PER_USER = 4096
"""Less than this is no use to anybody; llama.cpp's own fit stops here too."""

GOOD_LOSS = 0.035
"""Down to Q4_K_M (0.031) quality is kept and the context gives way, to a quarter."""

Q8_FLOOR_TOK_S = 20.0
"""Below it Q8_0 gives way to Q6_K where that is faster by a tenth: it loses 0.004 more."""

_STEPS = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8)


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
) -> list[Candidate]:
    """Every file type (or the one named) at one context, the choice first if there is one.

    Without `n_ctx` the context is the one `choose` would take, else the least useful one. After
    the choice come what fits, better quality first; what is tight and what does not fit, nearest
    to fitting first.

    Raises:
        MissingInputError: no such file type.
        BadDataError, UsageError: see `memory.predict`; UsageError for an unprobed `this`.
    """
    search = _Search(card, device, users, n_gpu_layers, kv_type)
    best = search.pick(n_ctx, filetype)
    ctx = best.plan.n_ctx if best else (n_ctx or search.floor)
    names = [find_filetype(filetype).id] if filetype else _common()
    rows = [search.at(name, ctx) for name in names]
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
    search = _Search(card, device, users, n_gpu_layers, kv_type)
    best = search.pick(n_ctx, filetype)
    if best is None:
        raise _nothing_fits(
            candidates(
                card,
                device,
                users=users,
                n_ctx=n_ctx,
                filetype=filetype,
                n_gpu_layers=n_gpu_layers,
                kv_type=kv_type,
            )
        )
    lost = [
        _lost(search.at(name, best.plan.n_ctx), best)
        for name in _common()
        if name != best.filetype.id
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


@dataclass(slots=True)
class _Search:
    """One model on one device, with what was computed for each file type kept."""

    card: ModelCard
    device: Device
    users: int
    n_gpu_layers: int | None
    kv_type: str
    cases: dict[str, tuple[Case, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device.probed and self.device.backend == "probed":
            raise UsageError(
                "`this` stands for a machine that has to be probed first",
                code="not_probed",
                hint="build the device with device_from_machine(probe())",
            )

    @property
    def floor(self) -> int:
        """The least useful context: 4,096 tokens a user."""
        return min(FLOOR_CTX_PER_USER, self.card.n_ctx_train) * self.users

    @property
    def target(self) -> int:
        return max(self.floor, min(self.card.n_ctx_train, USEFUL_CTX))

    def case(self, name: str) -> tuple[Case, int]:
        """The case of a file type and the most cells that fit."""
        if name not in self.cases:
            table = memory.weights(self.card, name)
            case = Case(
                self.card,
                self.device,
                find_filetype(name),
                self.users,
                table,
                self.n_gpu_layers,
                self.kv_type,
            )
            self.cases[name] = (case, case.largest_ctx())
        return self.cases[name]

    def at(self, name: str, n_ctx: int) -> Candidate:
        case, largest = self.case(name)
        return judge(case, n_ctx, largest)

    def pick(self, n_ctx: int | None, filetype: str | None) -> Candidate | None:
        """The choice, or None when nothing fits."""
        if filetype is not None:
            types = [find_filetype(filetype)]
        else:
            types = [f for f in load_filetypes().values() if f.automatic]
        good = [f for f in types if f.loss <= GOOD_LOSS]
        if n_ctx is not None:
            rounds = [(types, [n_ctx])]
        else:
            rounds = [
                (good, self.contexts(max(self.floor, self.target // 4))),
                (types, self.contexts(self.floor)),
            ]
        for names, contexts in rounds:
            for ctx in contexts:
                for kind in names:
                    _, largest = self.case(kind.id)
                    if ctx <= largest and (filetype or not self.held_back(kind, ctx)):
                        return self.at(kind.id, self.stretched(ctx, largest, n_ctx))
        return None

    def contexts(self, least: int) -> list[int]:
        """From the useful context down to `least`, longest first."""
        steps = [int(self.target * step) // 1024 * 1024 for step in _STEPS]
        return [ctx for ctx in steps if ctx > least] + [least]

    def stretched(self, ctx: int, largest: int, asked: int | None) -> int:
        """An open context grows to what fits, up to the model's own."""
        return asked or max(ctx, min(largest, max(self.card.n_ctx_train, self.floor)))

    def held_back(self, kind: FileType, ctx: int) -> bool:
        """Whether Q8_0 is too slow here, and Q6_K faster enough, to be worth its bytes."""
        if kind.id != "Q8_0":
            return False
        own, six = (self.at(name, ctx).speed.decode for name in ("Q8_0", "Q6_K"))
        return bool(own and six and own.value < Q8_FLOOR_TOK_S and six.value > 1.1 * own.value)


def _common() -> list[str]:
    """The file types that a report lists; the others are judged when they are named."""
    return [f.id for f in load_filetypes().values() if f.common]


def _order(c: Candidate) -> tuple[int, float]:
    if c.verdict == "fits":
        return 0, c.filetype.loss
    return 1 if c.verdict == "tight" else 2, float(c.missing_bytes or c.file_bytes)


def _because(best: Candidate, search: _Search, *, asked_for: bool, n_ctx: int | None) -> str:
    """Why this one: what it fits, what it leaves, why the next better one lost."""
    better = None
    if not asked_for:
        known = [find_filetype(name) for name in _common()]
        known = [f for f in known if f.loss < best.filetype.loss]
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
