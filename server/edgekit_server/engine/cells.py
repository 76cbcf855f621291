"""Calls on the KV memory of one context, with the guards that keep llama.cpp from aborting.

A base of `native.Context`, which passes the library in, since only that file imports it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_server.engine.pointer import Pointer

Blob = NDArray[np.uint8]
"""State of one sequence, in llama.cpp's own form."""

PARTIAL = 1
"""LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: only what cannot be cut (window, recurrent state)."""


class Cells:
    """What the step thread may do to the memory of its sequences."""

    pointer = Pointer()

    def __init__(self, library: Any, pointer: Any, *, n_seq_max: int, unified: bool) -> None:
        """`library`: the llama_cpp module; `pointer`: a llama_context."""
        self._library = library
        self.pointer = pointer
        self.memory = library.llama_get_memory(pointer)
        self.n_seq_max = n_seq_max
        self.unified = unified
        self.can_shift = bool(library.llama_memory_can_shift(self.memory))
        self.pending: set[int] = set()
        """Sequences in a copy or rotation that waits for the next decode: until then their
        bytes are not what the cells say, so their state may not be read or written."""

    def _checked(self, seq: int) -> int:
        if not (self.pointer and 0 <= seq < self.n_seq_max):
            raise IndexError(f"sequence {seq} of {self.n_seq_max}")
        return seq

    def seq_rm(self, seq: int, start: int = 0, end: int = -1) -> bool:
        """Forget positions `start` to `end` (-1: all). False: this memory cannot cut there."""
        return bool(
            self._library.llama_memory_seq_rm(self.memory, self._checked(seq), max(start, 0), end)
        )

    def seq_cp(self, source: int, target: int, end: int) -> None:
        """Give `target` the first `end` positions of `source`.

        Unified memory marks the cells as shared. Streams abort on anything but a whole copy, so
        that is made, by the next decode, and cut here.
        """
        source, target = self._checked(source), self._checked(target)
        if source == target:
            raise ValueError(f"sequence {source} copied onto itself")
        if self.unified:
            self._library.llama_memory_seq_cp(self.memory, source, target, 0, end)
            return
        self._library.llama_memory_seq_cp(self.memory, source, target, -1, -1)
        self.pending |= {source, target}
        self.seq_rm(target, end)

    def seq_add(self, seq: int, start: int, delta: int) -> None:
        """Move positions from `start` on by `delta`, for every owner of these cells.

        Raises ValueError where llama.cpp would abort: a memory that cannot shift.
        """
        if not self.can_shift or start + delta < 0:
            raise ValueError(f"positions from {start} cannot move by {delta}")
        self._library.llama_memory_seq_add(self.memory, self._checked(seq), start, -1, delta)
        self.pending.add(seq)

    def wipe(self) -> None:
        """Forget every sequence and write zeros over all cells."""
        self._checked(0)
        self._library.llama_memory_clear(self.memory, True)
        self.pending.clear()

    def seq_length(self, seq: int) -> int:
        """Return the number of positions the memory holds for a sequence."""
        return int(self._library.llama_memory_seq_pos_max(self.memory, self._checked(seq))) + 1

    def seq_start(self, seq: int) -> int:
        """Return the first position that is still there, above 0 in a window; -1: empty."""
        return int(self._library.llama_memory_seq_pos_min(self.memory, self._checked(seq)))

    def state_size(self, seq: int, *, partial: bool = False) -> int:
        """Return the bytes of `save`."""
        flags = PARTIAL if partial else 0
        size = self._library.llama_state_seq_get_size_ext(self.pointer, self._checked(seq), flags)
        return int(size)

    def save(self, seq: int, *, partial: bool = False) -> Blob | None:
        """Return the state of a sequence; None when it cannot be read (now)."""
        size = self.state_size(seq, partial=partial)
        if seq in self.pending or size == 0:
            return None
        blob = np.empty(size, np.uint8)
        n = self._library.llama_state_seq_get_data_ext(
            self.pointer, _bytes(blob), size, seq, PARTIAL if partial else 0
        )
        return blob if n == size else None

    def load(self, seq: int, blob: Blob, *, partial: bool = False) -> bool:
        """Replace the state of a sequence. False: refused, and the sequence is now unknown."""
        if seq in self.pending or not len(blob):
            return False
        n = self._library.llama_state_seq_set_data_ext(
            self.pointer, _bytes(blob), len(blob), self._checked(seq), PARTIAL if partial else 0
        )
        return int(n) == len(blob)


def _bytes(blob: Blob) -> Any:
    return blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
