"""The batch of one step as numpy arrays that llama_decode reads in place."""

from __future__ import annotations

from array import array

import numpy as np

from edgekit_server.engine import native


class Batch:
    """Room for `n_batch` rows, written by slices; every row belongs to exactly one sequence.

    One array of addresses stands for llama.cpp's `seq_id**`: row i points at `seq[i]`.
    `n_seq_id` stays 1 for ever, since a 0 there crashes the process.
    """

    def __init__(self, n_batch: int) -> None:
        self.token = np.zeros(n_batch, np.int32)
        self.pos = np.zeros(n_batch, np.int32)
        self.seq = np.zeros(n_batch, np.int32)
        self.output = np.zeros(n_batch, np.int8)
        self._n_seq_id = np.ones(n_batch, np.int32)
        self._n_seq_id.flags.writeable = False
        base = self.seq.ctypes.data
        self._seq_ptr = (base + 4 * np.arange(n_batch)).astype(np.uint64)
        self.struct = native.batch_struct(
            self.token, self.pos, self._n_seq_id, self._seq_ptr, self.output
        )
        self.n_rows = 0

    def clear(self) -> None:
        """Start a new step."""
        self.n_rows = 0

    def add(
        self, seq: int, start: int, tokens: array[int], *, output: bool, n_drafts: int = 0
    ) -> int:
        """Append consecutive tokens of one sequence from position `start`.

        `output` asks for logits of the last token before `n_drafts` drafts and of each draft.
        Returns the row of that token.
        """
        first, end = self.n_rows, self.n_rows + len(tokens)
        if end > len(self.token) or not tokens:
            raise ValueError(f"{len(tokens)} rows onto {first} of {len(self.token)}")
        if end - first == 1:  # a decode row: scalar stores are faster than slices
            self.token[first], self.pos[first], self.seq[first] = tokens[0], start, seq
            self.output[first] = output
        else:
            self.token[first:end] = tokens
            self.pos[first:end] = np.arange(start, start + end - first, dtype=np.int32)
            self.seq[first:end] = seq
            self.output[first:end] = 0
            self.output[end - 1 - n_drafts : end] = output
        self.n_rows = end
        return end - 1 - n_drafts

    def ready(self) -> object:
        """Return the struct to decode."""
        self.struct.n_tokens = self.n_rows
        return self.struct
