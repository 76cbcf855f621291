"""Where a memory that cannot be cut anywhere can be taken up again. Pure.

A sliding window forgets old cells and a recurrent layer keeps one running state, so going back
to an earlier token needs a copy of that part made when the sequence was there: a checkpoint.
The cells of full-attention layers need none; they are cut as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgekit_server.engine.cells import Blob

SPACING = 8192
"""Tokens between the checkpoints of a long prompt."""
NEAR_END = 4
"""A checkpoint lies this far before a prompt's end: the next turn often differs only in the
few tokens that open an answer. SPACING, this and n_ubatch + this are llama-server's rule."""
MOST = 32
"""Checkpoints of one sequence."""
WORTH = 32
"""A prompt shorter than this is computed again faster than anything is copied."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How the memory of a model may be cut and copied."""

    unified: bool = True
    n_swa: int = 0
    """Tokens in the window of the layers that have one; 0: none has."""
    recurrent: bool = False

    @property
    def exact(self) -> bool:
        """Whether a sequence may be cut at any position: full attention only."""
        return self.n_swa == 0 and not self.recurrent


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What cannot be cut, as it was after `n_tokens` tokens."""

    n_tokens: int
    blob: Blob


def keepable(
    kind: Kind, common: int, length: int, start: int, checkpoints: Sequence[Checkpoint]
) -> tuple[int, Checkpoint | None]:
    """Return how many of the `common` leading tokens can be kept, and from which checkpoint.

    `length`: tokens of the sequence; `start`: first position still in its window.
    """
    if kind.exact or common == length:
        return common, None
    if not kind.recurrent and 0 <= start <= max(0, common - kind.n_swa):
        return common, None
    fitting = [c for c in checkpoints if c.n_tokens <= common]
    if not fitting:
        return 0, None
    best = max(fitting, key=lambda c: c.n_tokens)
    return best.n_tokens, best


def stops(n_prompt: int, n_cached: int, n_ubatch: int, wanted: Iterable[int] = ()) -> list[int]:
    """Return the lengths, ascending, at which a prompt pauses to be checkpointed."""
    if n_prompt < WORTH:
        return []
    places = {n_prompt - NEAR_END, n_prompt - NEAR_END - n_ubatch}
    places |= set(range(SPACING, n_prompt, SPACING))
    places |= {place for place in wanted if place - n_cached >= WORTH}
    return sorted(place for place in places if n_cached < place < n_prompt)
