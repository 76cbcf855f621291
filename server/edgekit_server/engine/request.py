"""One request inside the engine: what it has, what it still wants."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from edgekit_server.engine.adapters import NO_ADAPTERS, AdapterSet
from edgekit_server.engine.sampling import Chooser
from edgekit_server.engine.speculate import Drafter

ADMISSION_RESERVE = 256
"""Most answer tokens a request must have room for before it starts. Beyond that it takes its
chances: reserving every max_tokens would leave the memory mostly empty."""

_keys = count(1)


@dataclass(slots=True, eq=False)
class Request:
    """State counters; everything else follows from them."""

    id: int
    tokens: array[int]
    """Prompt, then the answer so far."""
    limit: int
    """Length of `tokens` at which the answer ends: by max_tokens or by the context."""
    chooser: Chooser
    arrived: float
    ends: frozenset[int]
    """Ids that end this answer."""
    cache_prompt: bool = True
    adapters: AdapterSet = NO_ADAPTERS
    speculate: bool = True
    shift_at: int | None = None
    """Length at which the middle is forgotten so that the answer can go on; None: never."""
    deadline: float | None = None
    """On the clock of `arrived`: from then on no step is spent on it."""
    key: int = field(default_factory=lambda: next(_keys))
    """Our own number: a front may reuse `id`."""
    n_prompt: int = field(init=False)
    n_keep: int = field(init=False)
    """Tokens that a shift leaves at the beginning: the prompt, a quarter of the context at most."""
    seq: int | None = None
    admitted: float = 0.0
    n_cached: int = 0
    drafter: Drafter | None = None
    announced: bool = False
    """Whether the first output, with its one-time figures, has been sent."""

    def __post_init__(self) -> None:
        self.n_prompt = len(self.tokens)
        self.n_keep = 0 if self.shift_at is None else min(self.n_prompt, self.shift_at // 4)

    @property
    def n_answer(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def reserve(self) -> int:
        """Cells this request may soon take for its answer."""
        return min(self.limit - len(self.tokens), ADMISSION_RESERVE)

    def forget(self, discard: int) -> None:
        """Take out `discard` tokens after the kept ones; the counts of the answer stay."""
        keep = self.n_keep
        # A new array: a drafter has an index of the old one.
        self.tokens = self.tokens[:keep] + self.tokens[keep + discard :]
        self.n_prompt -= discard
        self.limit -= discard


def expired(requests: Iterable[Request], now: float) -> list[Request]:
    """Return those whose deadline has come."""
    return [r for r in requests if r.deadline is not None and now >= r.deadline]


def spare(broken: Sequence[Request]) -> list[Request]:
    """Return those of the requests with rows of no number that must not end for it.

    A row breaks over its own tokens or over cells that another has just filled with NaN. One
    that answered well until a newcomer broke beside it is taken for the latter.
    """
    newcomers = any(request.n_answer == 0 for request in broken)
    return [request for request in broken if newcomers and request.n_answer > 0]


def deadline(arrived: float, *limits_s: float | None) -> float | None:
    """Return the time at which the shortest of the limits ends; None without any."""
    return min((arrived + limit for limit in limits_s if limit is not None), default=None)
