"""Judge one file type on one device at one context: verdict, what binds, and the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from edgekit import memory, speed, wording
from edgekit.facts import Device, FileType, ModelCard
from edgekit.memory import CELLS_STEP, MemoryPlan, Site, Weights
from edgekit.speed import Speed

Verdict = Literal["fits", "tight", "no"]
Binding = Literal["memory", "host memory", "context", "speed", "engine", "unknown"]
BindingPart = Literal["weights", "kv", "compute"]


@dataclass(frozen=True, slots=True)
class Targets:
    """How fast it must be: tokens a second for each user, milliseconds to the first token."""

    tok_s: float | None = None
    ttft_ms: float | None = None

    def missed(self, pace: Speed) -> str | None:
        """What is predicted too slow, or cannot be predicted; None: nothing asked is missed."""
        decode, first = pace.decode, pace.ttft_ms
        if self.tok_s is not None and (decode is None or decode.value < self.tok_s):
            return wording.too_slow(decode, self.tok_s)
        if self.ttft_ms is not None and (first is None or first.value > self.ttft_ms):
            return wording.too_late(first, self.ttft_ms)
        return None


NO_TARGETS = Targets()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One file type on one device at one context, judged.

    `binding` is what stands in the way, or for one that fits what would give out first: memory,
    or the context the model was trained on. `largest_ctx` is the most KV cells that fit as
    offloaded, up to what the users can use; 0 is none. `missing_bytes` is what the device lacks for
    all layers at this context; negative is spare, None is unknown.
    """

    card: ModelCard
    device: Device
    filetype: FileType
    plan: MemoryPlan
    speed: Speed
    file_bytes: int
    verdict: Verdict
    binding: Binding
    reason: str
    largest_ctx: int
    missing_bytes: int | None

    @property
    def binding_part(self) -> BindingPart | None:
        """The part that goes over the device's budget when they are laid into it in turn:
        weights, keys and values, scratch. None where memory does not bind."""
        return wording.over_at(self.plan) if self.binding == "memory" else None


@dataclass(frozen=True, slots=True)
class Case:
    """A model in one file type on a device for some users; the context is still open.

    `place` are the device's budgets where they are known already. Speeds do not depend on the
    context, so they are kept here by the number of layers on the device.
    """

    card: ModelCard
    device: Device
    filetype: FileType
    users: int
    table: Weights
    n_gpu_layers: int | None = None
    kv_type: str = "f16"
    place: Site | None = None
    targets: Targets = NO_TARGETS
    _paces: dict[int, Speed] = field(default_factory=dict, repr=False, compare=False)

    def plan(self, n_ctx: int, n_gpu_layers: int | None = None) -> MemoryPlan:
        """Bytes at a context; `n_gpu_layers` overrides the case's own."""
        return memory.predict(
            self.card,
            self.device,
            self.table,
            n_ctx=n_ctx,
            users=self.users,
            n_gpu_layers=self.n_gpu_layers if n_gpu_layers is None else n_gpu_layers,
            kv_type=self.kv_type,
            place=self.place,
        )

    @property
    def useful_ctx(self) -> int:
        """More KV cells than these can never be filled."""
        return self.card.n_ctx_train * self.users

    def over(self, n_ctx: int, n_gpu_layers: int | None = None) -> int | None:
        """Bytes over the budget, as `Site.over`, without making a plan of it."""
        place = self.place or memory.site(self.device)
        asked = self.n_gpu_layers if n_gpu_layers is None else n_gpu_layers
        most = self.table.shape.n_layer + 1
        offload = most if asked is None else min(asked, most)
        args = (self.table, n_ctx, self.users, offload, self.kv_type)
        return place.over(self.table, memory.demand(*args, split=place.split, cards=place.cards))

    def holds(self, n_ctx: int) -> bool:
        """Whether the memory is there, as offloaded."""
        over = self.over(n_ctx)
        return over is not None and over <= 0

    def largest_ctx(self) -> int:
        """Most KV cells that fit, in whole steps of 256; 0 is none.

        Memory is made of straight lines over the context, so a line through two known points
        hits the limit at once, or after the next bend.
        """
        most = self.useful_ctx // CELLS_STEP
        if most < 1 or not self.holds(CELLS_STEP):
            return 0
        if self.holds(most * CELLS_STEP):
            return most * CELLS_STEP
        return CELLS_STEP * last_below(lambda k: self.over(k * CELLS_STEP) or 0, 1, most)

    def pace(self, plan: MemoryPlan) -> Speed:
        """Speeds of a plan of this case."""
        known = self._paces.get(plan.n_gpu_layers)
        if known is None:
            known = speed.predict(self.card, self.device, self.table, plan, self.filetype)
            self._paces[plan.n_gpu_layers] = known
        return known


def judge(case: Case, n_ctx: int, largest_ctx: int | None = None) -> Candidate:
    """Verdict on a case at a context; `largest_ctx` spares computing it again.

    "tight" is a plan that runs but not as it should: into the margin, slower than asked, or with
    up to half of the layers on the host. Worse than that is "no": a little spill costs a multiple
    of the time.

    Raises:
        BadDataError, UsageError: see `memory.predict`.
    """
    whole = case.plan(n_ctx)
    largest = case.largest_ctx() if largest_ctx is None else largest_ctx
    plan, verdict, binding, reason = _verdict(case, whole, largest)
    # Speeds of a plan that does not run would only mislead.
    pace = case.pace(plan) if verdict != "no" else speed.unknown(case.users)
    missed = case.targets.missed(pace) if verdict != "no" else None
    if missed is not None and verdict == "fits":
        verdict, binding, reason = "tight", "speed", missed
    elif missed is not None:
        reason = f"{missed}; {reason}"
    return Candidate(
        card=case.card,
        device=case.device,
        filetype=case.filetype,
        plan=plan,
        speed=pace,
        file_bytes=memory.file_bytes(case.card, case.table),
        verdict=verdict,
        binding=binding,
        reason=reason,
        largest_ctx=largest,
        missing_bytes=whole.missing,
    )


def _verdict(
    case: Case, plan: MemoryPlan, largest: int
) -> tuple[MemoryPlan, Verdict, Binding, str]:
    main, *rest = plan.parts
    limit = plan.device.limit_bytes
    if not case.device.runs_engine:
        return plan, "no", "engine", wording.no_engine(case.device)
    if plan.n_ctx > case.useful_ctx:
        return plan, "no", "context", wording.beyond_training(plan, case.card.n_ctx_train)
    if main.budget is None:
        return plan, "no", "unknown", wording.memory_unknown(plan, case.device)
    if plan.fits and _partial(case.device, plan):
        return plan, "tight", "memory", wording.partial(plan, largest, asked=True)
    if plan.fits:
        ends = largest >= case.useful_ctx // CELLS_STEP * CELLS_STEP
        return plan, "fits", "context" if ends else "memory", wording.fits(plan)
    if main.fits and not all(part.fits for part in rest):
        return plan, "no", "host memory", wording.host_short(plan)
    if limit is not None and main.total <= limit and all(part.fits for part in rest):
        return plan, "tight", "memory", wording.no_margin(plan, largest)
    spilled = _spill(case, plan)
    if spilled is not None:
        text = wording.partial(spilled, largest, asked=False, short=plan.missing or 0)
        return spilled, "tight", "memory", text
    return plan, "no", "memory", wording.too_big(plan, largest)


def _partial(device: Device, plan: MemoryPlan) -> bool:
    return device.memory_kind == "dedicated" and plan.n_gpu_layers < plan.n_layers


def _spill(case: Case, plan: MemoryPlan) -> MemoryPlan | None:
    """The plan with most layers on the device that fits, down to half of them."""
    if case.device.memory_kind != "dedicated" or case.n_gpu_layers is not None:
        return None
    # The device's part grows with its layers and the host's shrinks, so the most that the device
    # holds is the only count to look at.
    least, main = plan.n_layers // 2, plan.parts[0]
    fixed = main.overhead - (main.budget or 0)

    def over(layers: int) -> int:
        args = (case.table, plan.n_ctx, case.users, layers, case.kv_type)
        found = memory.demand(*args, split=True, cards=case.device.count)
        return found.weights + found.kv + found.compute + fixed

    if over(least) > 0:
        return None
    fewer = case.plan(plan.n_ctx, last_below(over, least, plan.n_layers))
    return fewer if fewer.fits else None


def last_below(over: Callable[[int], int], low: int, high: int) -> int:
    """The largest k for which a rising function is 0 or less; it is so at `low`, not at `high`.

    Guesses by a straight line between the ends, and halves what is left where that gains little.
    """
    under, above = over(low), over(high)
    while high - low > 1:
        width = high - low
        guess = low + (-under * width) // (above - under)
        for k in (min(guess, high - 1), guess + 1, (low + high) // 2):
            if not low < k < high:
                continue
            found = over(k)
            if found <= 0:
                low, under = k, found
            else:
                high, above = k, found
            if k == guess + 1 and (high - low) * 2 <= width:
                break
    return low
