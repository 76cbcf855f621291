"""Messages about embeddings, scores and adapters; part of wire.py's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Embed:
    """Turn each prompt into one vector, or into scores where the model ranks."""

    id: int
    prompts: list[list[tuple[str, bool]] | list[int]]
    """Pieces as in wire.Piece, or token ids."""
    norm: int = 2
    """-1 as computed, 0 largest value 32760, p >= 1 the p-norm 1; scores are never normalised."""
    dimensions: int | None = None
    """Keep the first so many values, then normalise. None: all."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to Embed, in the order of its prompts."""

    id: int
    vectors: list[bytes]
    """Little-endian float32."""
    n_tokens: list[int]
    """Tokens of each prompt."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a model can say about a text other than more text."""

    pooling: str
    """mean, cls, last or rank; none: nothing that can be compared."""
    n_out: int
    """Values of a vector, or scores of a pair."""
    n_ctx: int
    """The most tokens of one prompt."""
    eos: str | None
    """What ends a prompt, if anything does; `sep` comes after it."""
    sep: str | None
    rank_end: str | None
    """What ends a query and a document: eos, or what stands in for it."""
    rank_template: str | None
    """The model's own text around {query} and {document}."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A LoRA adapter that is loaded; its id is its place in Hello's list."""

    name: str
    path: str
    scale: float
    """What a request gets that names no adapters."""
