"""Text as windows of tokens, and running them through a model, several at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit_quantize.errors import BadCheckpointError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit_quantize.llama import Runner

    Logits = npt.NDArray[np.float32]

WINDOW = 512
"""Tokens of a window, llama.cpp's own default for perplexity and importance matrices."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one text for one vocabulary, each `size` ids, the first one BOS where wanted."""

    ids: tuple[tuple[int, ...], ...]
    size: int

    @property
    def digest(self) -> str:
        """Names these very ids: two models with it in common have the same vocabulary here."""
        text = "\n".join(" ".join(map(str, window)) for window in self.ids)
        return hashlib.sha256(text.encode()).hexdigest()


def cut(ids: Sequence[int], first: Sequence[int], size: int, limit: int | None) -> Windows:
    """Cut a text's ids into windows; of too many, `limit` are taken evenly over the text.

    What does not fill a window is left out. Raises BadCheckpointError (`text_too_short`) when
    not one window fills.
    """
    step = size - len(first)
    starts = list(range(0, len(ids) - step + 1, step))
    if not starts:
        raise BadCheckpointError(
            f"the text has {len(ids)} tokens; one window takes {step}",
            code="text_too_short",
            hint="give a longer text, or none for the one that edgekit ships",
        )
    if limit is not None and limit < len(starts):
        starts = [starts[i * len(starts) // limit] for i in range(limit)]
    return Windows(tuple((*first, *ids[at : at + step]) for at in starts), size)


def run(
    runner: Runner,
    windows: Windows,
    scored: range,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Sequence[int], Logits]]:
    """Run each window; give its ids and the logits after the positions in `scored`.

    The logits are valid until the next step. `progress(done, total)` counts windows.
    """
    from edgekit_quantize.llama import Row

    together = max(1, runner.settings.n_batch // windows.size)
    for at in range(0, len(windows.ids), together):
        group = windows.ids[at : at + together]
        runner.clear()
        logits = runner.decode(
            [
                Row(token, position, sequence, position in scored)
                for sequence, window in enumerate(group)
                for position, token in enumerate(window)
            ]
        )
        for i, window in enumerate(group):
            yield window, logits[i * len(scored) : (i + 1) * len(scored)]
        if progress is not None:
            progress(at + len(group), len(windows.ids))
