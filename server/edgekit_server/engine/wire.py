"""Messages between the front and one engine child: 4-byte big-endian length, then msgpack.

front -> engine   Generate, Cancel, Tokenize, Stop
engine -> front   Hello (once, when ready), Accepted or Rejected (per Generate, before any
                  token), Step (one per engine step, all outputs of that step), Tokens, Fatal

Each message is a frozen dataclass; on the wire it is a two-item array [class name, fields].
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import msgpack

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
HEADER = struct.Struct(">I")

Piece = tuple[str, bool]
"""Text to tokenize and whether control tokens in it are real (template) or text (user's)."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """llama-server's parameters, names and defaults (common/common.h)."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    n_logprobs: int | None = None
    """None: no logprobs; 0: the chosen token's only; k: the k best as well."""


@dataclass(frozen=True, slots=True)
class Generate:
    id: int
    prompt: list[Piece] | list[int]
    max_tokens: int | None = None
    """None: up to the end of the context."""
    ignore_eos: bool = False
    cache_prompt: bool = True
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Cancel:
    id: int


@dataclass(frozen=True, slots=True)
class Tokenize:
    id: int
    prompt: list[Piece]


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish nothing, free the model, exit 0."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The loaded model, as the front needs it. Token texts are as rendered with specials."""

    model_id: str
    architecture: str | None
    description: str
    n_params: int
    size_bytes: int
    n_vocab: int
    n_ctx_train: int
    n_ctx: int
    n_ctx_seq: int
    """The most tokens, prompt and answer together, that one sequence may hold."""
    n_seq_max: int
    chat_template: str | None
    bos: str | None
    eos: str | None
    add_bos: bool
    fim: dict[str, str]
    """Texts of the FIM control tokens by role: prefix, suffix, middle; absent roles left out."""
    control_tokens: list[str]
    reasons: dict[str, str]
    """Each choice the engine made by itself, and why."""


@dataclass(frozen=True, slots=True)
class Accepted:
    id: int
    n_prompt: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """code: context_length_exceeded, queue_full, bad_token, empty_prompt, tokenizer_failed."""

    id: int
    code: str
    message: str
    n_prompt: int = 0


@dataclass(frozen=True, slots=True)
class TopToken:
    token: int
    text: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Output:
    """What one request got in one step. `finish` is set on its last output only."""

    id: int
    tokens: list[int]
    pieces: list[tuple[bytes, bool]]
    """Bytes of each token and whether it is a control token. May split a UTF-8 character."""
    logprobs: list[TopToken] = field(default_factory=list)
    top_logprobs: list[list[TopToken]] = field(default_factory=list)
    finish: str | None = None
    """stop (end of generation), length, cancelled or error."""
    error: str | None = None
    n_cached: int | None = None
    """Prompt tokens taken from a resident prefix; on the first output only."""
    prefill_ms: float | None = None
    """Admission to first token; on the first output only."""


@dataclass(frozen=True, slots=True)
class Step:
    outputs: list[Output]


@dataclass(frozen=True, slots=True)
class Tokens:
    id: int
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Fatal:
    """The engine is about to exit: bad_model, out_of_memory, internal."""

    code: str
    message: str


Message = (
    Generate | Cancel | Tokenize | Stop | Hello | Accepted | Rejected | Step | Tokens | Fatal
)
