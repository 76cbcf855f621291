"""The search for the best file type and context of one model on one device.

What does not depend on the context is computed once: the budgets of the device, the weights and
speeds of each file type. So one search answers for many contexts, and most file types are refused
by a comparison of two numbers before any speed is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Final

from edgekit import memory
from edgekit.candidate import NO_TARGETS, Candidate, Case, Targets, judge
from edgekit.catalogue import find_filetype, load_filetypes
from edgekit.errors import UsageError
from edgekit.facts import Device, FileType, ModelCard
from edgekit.memory import Site

USEFUL_CTX: Final = 32768
"""A context that holds the files of an agent's task; longer ones only where nothing is lost."""

FLOOR_CTX_PER_USER: Final = 4096
"""Less than this is no use to anybody; llama.cpp's own fit stops here too."""

GOOD_LOSS: Final = 0.035
"""Down to Q4_K_M (0.031) quality is kept and the context gives way, to a quarter."""

Q8_FLOOR_TOK_S: Final = 20.0
"""Below it Q8_0 gives way to Q6_K where that is faster by a tenth: it loses 0.004 more."""

_STEPS: Final = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8)


@dataclass(slots=True)
class Search:
    """One model on one device, with what was computed for each file type kept.

    Raises UsageError for `this` machine before it was probed.
    """

    card: ModelCard
    device: Device
    users: int = 1
    n_gpu_layers: int | None = None
    kv_type: str = "f16"
    targets: Targets = NO_TARGETS
    place: Site = field(init=False)
    _cases: dict[str, Case] = field(default_factory=dict)
    _largest: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device.probed and self.device.backend == "probed":
            raise UsageError(
                "`this` stands for a machine that has to be probed first",
                code="not_probed",
                hint="build the device with device_from_machine(probe())",
            )
        self.place = memory.site(self.device)

    @property
    def floor(self) -> int:
        """The least useful context: 4,096 tokens a user."""
        return min(FLOOR_CTX_PER_USER, self.card.n_ctx_train) * self.users

    @property
    def target(self) -> int:
        """The context to aim at when none is asked for."""
        return max(self.floor, min(self.card.n_ctx_train, USEFUL_CTX))

    def case(self, name: str) -> Case:
        """The case of a file type. Raises as `memory.weights`."""
        known = self._cases.get(name)
        if known is None:
            known = self._cases[name] = Case(
                self.card,
                self.device,
                find_filetype(name),
                self.users,
                memory.weights(self.card, name),
                self.n_gpu_layers,
                self.kv_type,
                self.place,
                self.targets,
            )
        return known

    def largest(self, name: str) -> int:
        """The most cells that fit."""
        if name not in self._largest:
            self._largest[name] = self.case(name).largest_ctx()
        return self._largest[name]

    def at(self, name: str, n_ctx: int) -> Candidate:
        """The verdict on a file type at a context."""
        return judge(self.case(name), n_ctx, self.largest(name))

    def best(self, n_ctx: int | None = None, filetype: str | None = None) -> Candidate:
        """The choice, or what comes nearest to it: the smallest file type that may be chosen."""
        found = self.pick(n_ctx, filetype)
        if found is not None:
            return found
        name = find_filetype(filetype).id if filetype else self._smallest()
        return self.at(name, n_ctx or self.floor)

    def pick(self, n_ctx: int | None, filetype: str | None) -> Candidate | None:
        """The choice, or None when nothing fits.

        When all that fit are slower than the targets, it is the fastest of them, and tight.
        """
        if not self.device.runs_engine:
            return None
        types = (find_filetype(filetype),) if filetype else automatic()
        good = tuple(f for f in types if f.loss <= GOOD_LOSS)
        if n_ctx is not None:
            rounds = [(types, [n_ctx])]
        else:
            rounds = [
                (good, self._contexts(max(self.floor, self.target // 4))),
                (types, self._contexts(self.floor)),
            ]
        slow: tuple[FileType, int] | None = None
        for kinds, contexts in rounds:
            for ctx in contexts:
                if ctx > self.card.n_ctx_train * self.users:
                    continue
                for kind in kinds:
                    if not self.case(kind.id).holds(ctx):
                        continue
                    if filetype is None and self._held_back(kind):
                        continue
                    if self._in_time(kind):
                        return self.at(kind.id, self._stretched(kind, ctx, n_ctx))
                    if slow is None or self._pace(kind.id) > self._pace(slow[0].id):
                        slow = kind, ctx
        return self.at(slow[0].id, self._stretched(*slow, n_ctx)) if slow else None

    def _in_time(self, kind: FileType) -> bool:
        if self.targets == NO_TARGETS:
            return True
        case = self.case(kind.id)
        return self.targets.missed(case.pace(case.plan(self.floor))) is None

    def _contexts(self, least: int) -> list[int]:
        """From the useful context down to `least`, longest first."""
        steps = [int(self.target * step) // 1024 * 1024 for step in _STEPS]
        return [ctx for ctx in steps if ctx > least] + [least]

    def _stretched(self, kind: FileType, ctx: int, asked: int | None) -> int:
        """An open context grows to what fits, up to the model's own."""
        if asked is not None:
            return asked
        return max(ctx, min(self.largest(kind.id), max(self.card.n_ctx_train, self.floor)))

    def _held_back(self, kind: FileType) -> bool:
        """Whether Q8_0 is too slow here, and Q6_K faster enough, to be worth its bytes."""
        if kind.id != "Q8_0":
            return False
        own = self._pace("Q8_0")
        return 0 < own < Q8_FLOOR_TOK_S and self._pace("Q6_K") > 1.1 * own

    def _pace(self, name: str) -> float:
        """Tokens a second of a user with the layers as asked; 0 is unknown."""
        case = self.case(name)
        found = case.pace(case.plan(self.floor)).decode
        return found.value if found else 0.0

    def _smallest(self) -> str:
        return min(automatic(), key=lambda f: self.case(f.id).table.total).id


@cache
def automatic() -> tuple[FileType, ...]:
    """The file types that may be chosen without being named, least loss first."""
    return tuple(f for f in load_filetypes().values() if f.automatic)


@cache
def common() -> tuple[FileType, ...]:
    """The file types that a report lists; the others are judged when they are named."""
    return tuple(f for f in load_filetypes().values() if f.common)
