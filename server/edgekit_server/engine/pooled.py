"""Calls for a context that makes one vector per sequence, and what a model says about that.

`ll` is the llama_cpp module, handed in by native.py, the one file that imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_server.engine.options import POOLINGS
from edgekit_server.errors import EngineDiedError

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the file says about vectors and scores."""

    pooling: str | None
    """None: nothing."""
    causal: bool
    """Whether a token sees only those before it; else all tokens of a text go in one pass."""
    diffuses: bool
    n_embd: int
    n_scores: int
    ends: tuple[int, ...]
    """Ids that follow every text: end and separator, as far as the vocabulary asks for them."""
    pair_end: int | None
    """What ends a query and a document, where the vocabulary asks for an end."""
    adds_eos: bool
    adds_sep: bool
    rank_template: str | None


def read_facts(ll: Any, pointer: Any, vocab: Any, metadata: Any) -> Facts:
    """Return the facts of a loaded model; `metadata(key)` reads its file."""
    architecture = metadata("general.architecture") or ""
    number = metadata(f"{architecture}.pooling_type")
    names = {code: name for name, code in POOLINGS.items()}
    eos, sep = int(ll.llama_vocab_eos(vocab)), int(ll.llama_vocab_sep(vocab))
    adds_eos = bool(ll.llama_vocab_get_add_eos(vocab)) and eos >= 0
    adds_sep = bool(ll.llama_vocab_get_add_sep(vocab)) and sep >= 0
    template = ll.llama_model_chat_template(pointer, b"rerank")
    return Facts(
        pooling=names.get(int(number)) if (number or "").isdigit() else None,
        causal=metadata(f"{architecture}.attention.causal") != "false",
        diffuses=bool(ll.llama_model_is_diffusion(pointer)),
        n_embd=int(ll.llama_model_n_embd_out(pointer)),
        n_scores=int(ll.llama_model_n_cls_out(pointer)),
        ends=((eos,) if adds_eos else ()) + ((sep,) if adds_sep else ()),
        pair_end=(eos if eos >= 0 else sep if sep >= 0 else None)
        if ll.llama_vocab_get_add_eos(vocab)
        else None,
        adds_eos=adds_eos,
        adds_sep=adds_sep,
        rank_template=None if template is None else template.decode("utf-8", "replace"),
    )


class Pooled:
    """Turns output of vectors on and off, and reads them."""

    def __init__(self, ll: Any, context: Any, n_out: int) -> None:
        """`context`: a native.Context made with a pooling; `n_out`: values per vector."""
        self._ll = ll
        self.context = context
        self.n_out = n_out

    def decode(self, batch: Any, *, vectors: bool) -> int:
        """Compute a batch as Context.decode does; `vectors`: of its sequences, all rows output.

        ValueError for more rows than may have outputs then, where llama.cpp would abort.
        """
        if vectors and batch.n_tokens > self.context.n_outputs_max:
            raise ValueError(
                f"{batch.n_tokens} rows; {self.context.n_outputs_max} may have outputs"
            )
        self._ll.llama_set_embeddings(self.context.pointer, vectors)
        return int(self.context.decode(batch))

    def vector(self, seq: int) -> Vector:
        """Return the vector (or the scores) of a sequence of the last batch, as a copy."""
        pointer = self._ll.llama_get_embeddings_seq(self.context.pointer, seq)
        if not pointer:
            raise EngineDiedError(f"sequence {seq} has no vector", code="internal")
        return np.ctypeslib.as_array(pointer, (self.n_out,)).astype("<f4", copy=True)
