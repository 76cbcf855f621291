"""Judge one file type on one device at one context: verdict, what binds, and the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgekit import memory, speed, wording
from edgekit.facts import Device, FileType, ModelCard
from edgekit.memory import CELLS_STEP, MemoryPlan, Weights

Verdict = Literal["fits", "tight", "no"]
Binding = Literal["memory", "host memory", "context", "unknown"]


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
    speed: speed.Speed
    file_bytes: int
    verdict: Verdict
    binding: Binding
    reason: str
    largest_ctx: int
    missing_bytes: int | None


@dataclass(frozen=True, slots=True)
class Case:
    """A model in one file type on a device for some users; the context is still open."""

    card: ModelCard
    device: Device
    filetype: FileType
    users: int
    table: Weights
    n_gpu_layers: int | None = None
    kv_type: str = "f16"

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
        )

    @property
    def useful_ctx(self) -> int:
        """More KV cells than these can never be filled."""
        return self.card.n_ctx_train * self.users

    def largest_ctx(self) -> int:
        """Most KV cells that fit, in whole steps of 256; 0 is none."""
        most = self.useful_ctx // CELLS_STEP
        return CELLS_STEP * _last(lambda k: self.plan(k * CELLS_STEP).fits, most)


def judge(case: Case, n_ctx: int, largest_ctx: int | None = None) -> Candidate:
    """Verdict on a case at a context; `largest_ctx` spares computing it again.

    "tight" is a plan that runs but not as it should: into the margin, or with up to half of the
    layers on the host. Worse than that is "no": a little spill costs a multiple of the time.

    Raises:
        BadDataError, UsageError: see `memory.predict`.
    """
    whole = case.plan(n_ctx)
    largest = case.largest_ctx() if largest_ctx is None else largest_ctx
    plan, verdict, binding, reason = _verdict(case, whole, largest)
    # Speeds of a plan that does not run would only mislead.
    pace = (
        speed.predict(case.card, case.device, case.table, plan, case.filetype)
        if verdict != "no"
        else speed.unknown(case.users)
    )
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
        return plan, "no", "unknown", f"llama.cpp does not run on {case.device.name}"
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
        return spilled, "tight", "memory", wording.partial(spilled, largest, asked=False)
    return plan, "no", "memory", wording.too_big(plan, largest)


def _partial(device: Device, plan: MemoryPlan) -> bool:
    return device.memory_kind == "dedicated" and plan.n_gpu_layers < plan.n_layers


def _spill(case: Case, plan: MemoryPlan) -> MemoryPlan | None:
    """The plan with most layers on the device that fits, down to half of them."""
    if case.device.memory_kind != "dedicated" or case.n_gpu_layers is not None:
        return None
    # The device's part grows with its layers and the host's shrinks, so the most that the device
    # holds is the only count to look at.
    least = plan.n_layers // 2
    more = _last(
        lambda k: case.plan(plan.n_ctx, least - 1 + k).parts[0].fits, plan.n_layers - least
    )
    fewer = case.plan(plan.n_ctx, least - 1 + more) if more else None
    return fewer if fewer is not None and fewer.fits else None


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest k in 1..most for which a falling predicate holds; 0 when none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
