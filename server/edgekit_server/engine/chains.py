"""Chains of C samplers, and the arrays of candidates that they work on.

`ll` is the llama_cpp module, handed in by native.py, the one file that imports it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit_server.engine.pointer import Pointer, forget

Sampler = tuple[str, tuple[float | tuple[bytes, ...], ...]]
"""llama_sampler_init_ suffix and its arguments; DRY's without the vocabulary."""
SELECTING = ("dist", "greedy", "mirostat", "mirostat_v2")
"""Samplers that pick a token; a chain without one aborts."""


class Candidates:
    """Room for some of a row's tokens, in the form that samplers work on."""

    def __init__(self, ll: Any, room: int) -> None:
        kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self.table = np.zeros(room, kind)
        self.pointer = self.table.ctypes.data_as(ll.llama_token_data_p)
        self.array = ll.llama_token_data_array()


class Chain:
    """Samplers in order; the last one must select. Owned by one sequence, freed with it."""

    pointer = Pointer()

    def __init__(self, ll: Any, samplers: Sequence[Sampler], vocab: object | None) -> None:
        """Build from (llama_sampler_init_ suffix, its arguments); `dry` needs Model.vocab.

        Raises ValueError for a chain that would abort in C or that C refuses.
        """
        if not samplers or samplers[-1][0] not in SELECTING:
            raise ValueError("a chain ends in dist or greedy; anything else aborts in C")
        self._ll = ll
        self.pointer = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        for name, arguments in samplers:
            if name == "dry":
                *numbers, breakers = arguments
                assert vocab is not None
                assert isinstance(breakers, tuple)
                texts = (ctypes.c_char_p * len(breakers))(*breakers)  # C copies them
                sampler = ll.llama_sampler_init_dry(vocab, *numbers, texts, len(breakers))
            else:
                sampler = getattr(ll, f"llama_sampler_init_{name}")(*arguments)
            if not sampler:
                self.close()
                raise ValueError(f"llama.cpp refused the sampler {name}{arguments}")
            ll.llama_sampler_chain_add(self.pointer, sampler)

    def draw(self, candidates: Candidates, count: int, *, falling: bool) -> int | None:
        """Draw from the first `count` candidates; None: the samplers selected none.

        `falling`: they are in falling order of logits. Overwrites them; `accept` is up to the
        caller.
        """
        if not 0 < count <= len(candidates.table):
            raise ValueError(f"{count} candidates of {len(candidates.table)}")
        array = candidates.array
        array.data, array.size = candidates.pointer, count  # XTC moves both
        array.selected, array.sorted = -1, falling
        self._ll.llama_sampler_apply(self.pointer, ctypes.byref(array))
        return int(array.data[array.selected].id) if 0 <= array.selected < array.size else None

    def accept(self, token: int) -> None:
        """Show the chain a token that `Context.sample` did not draw, for penalties."""
        self._ll.llama_sampler_accept(self.pointer, token)

    def close(self) -> None:
        if pointer := forget(self, "pointer"):
            self._ll.llama_sampler_free(pointer)
