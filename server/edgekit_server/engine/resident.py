"""What a sequence id holds, and the two places its memory comes from and goes to."""

from __future__ import annotations

from array import array
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Protocol

from edgekit_server.engine.adapters import NO_ADAPTERS, AdapterSet
from edgekit_server.engine.cells import Blob
from edgekit_server.engine.checkpoints import Checkpoint, Kind
from edgekit_server.engine.prefix import Span, common_prefix


class Cells(Protocol):
    """The calls into native memory that the table makes; see cells.py."""

    @property
    def can_shift(self) -> bool: ...
    @property
    def pending(self) -> Set[int]: ...
    def seq_rm(self, seq: int, start: int = 0, end: int = -1) -> bool: ...
    def seq_cp(self, source: int, target: int, end: int) -> None: ...
    def seq_add(self, seq: int, start: int, delta: int) -> None: ...
    def seq_start(self, seq: int) -> int: ...
    def state_size(self, seq: int, *, partial: bool = False) -> int: ...
    def save(self, seq: int, *, partial: bool = False) -> Blob | None: ...
    def load(self, seq: int, blob: Blob, *, partial: bool = False) -> bool: ...


@dataclass(frozen=True, slots=True)
class Saved:
    """A sequence outside KV memory."""

    tokens: array[int]
    blob: Blob
    checkpoints: tuple[Checkpoint, ...] = ()
    adapters: AdapterSet = NO_ADAPTERS
    """What it was computed with, and is good for."""

    @property
    def n_bytes(self) -> int:
        parts = [self.blob, *(c.blob for c in self.checkpoints)]
        return sum(part.nbytes for part in parts) + 4 * len(self.tokens)


class Store(Protocol):
    """Where sequences go that lose their place; see hostcache.py."""

    def wants(
        self, tokens: array[int], n_bytes: int, adapters: AdapterSet, *, hurried: bool
    ) -> bool: ...
    def put(self, saved: Saved) -> None: ...
    def find(
        self, prompt: array[int], kind: Kind, adapters: AdapterSet
    ) -> tuple[Saved | None, int]: ...


@dataclass(slots=True)
class Resident:
    """One sequence id: the tokens whose cells it holds, and who uses it."""

    seq: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    owner: int | None = None
    adapters: AdapterSet = NO_ADAPTERS
    """What its tokens were computed with; only requests with the same set may take them."""
    last_used: int = 0
    spans: list[Span] = field(default_factory=list)
    """Which cells, so that shared ones are counted once."""
    sound: int | None = None
    """Tokens that equal a fresh computation, if not all: the rest was moved by a shift."""
    stops: list[int] = field(default_factory=list)
    """Lengths at which to make a checkpoint, ascending."""
    checkpoints: list[Checkpoint] = field(default_factory=list)
    stored: int = 0
    """Tokens that the store has a copy of."""

    @property
    def idle(self) -> bool:
        return self.owner is None and len(self.tokens) > 0

    def common(self, prompt: array[int]) -> int:
        """Return how many tokens of a prompt this one holds, the prompt's last one left out."""
        most = len(prompt) - 1 if self.sound is None else min(self.sound, len(prompt) - 1)
        return common_prefix(self.tokens, prompt, most)
