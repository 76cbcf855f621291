"""A few threads for work that leaves the interpreter: C samplers over whole rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Pool:
    """Spreads items over the calling thread and `n_threads` - 1 more, started when first used."""

    def __init__(self, n_threads: int) -> None:
        self._n_threads = n_threads
        self._executor: ThreadPoolExecutor | None = None

    def map(self, work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Return work(item) for each, in order; one future per contiguous group of items."""
        n_groups = min(self._n_threads, len(items))
        if n_groups < 2:
            return [work(item) for item in items]
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._n_threads - 1, "sample")
        cuts = [len(items) * i // n_groups for i in range(n_groups + 1)]
        groups = [items[start:end] for start, end in pairwise(cuts)]

        def run(group: Sequence[_Item]) -> list[_Result]:
            return [work(item) for item in group]

        futures = [self._executor.submit(run, group) for group in groups[1:]]
        done = run(groups[0])
        for future in futures:
            done += future.result()
        return done

    def close(self) -> None:
        """End the threads; a later `map` starts new ones."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
