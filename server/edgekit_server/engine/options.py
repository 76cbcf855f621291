"""What a model and its context are made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit_server.errors import ConfigError

MAX_SEQUENCES = 256
MAX_CELLS = 2**26
"""Six sequences of the longest context known (10 million). llama.cpp keeps some 50 bytes of
records per cell and writes them before it finds out that the cells themselves have no room."""
MAX_THREADS = 512
"""GGML_MAX_N_THREADS."""
KV_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 20,
}
"""Types a KV cell may have, and their numbers in ggml.h."""
POOLINGS = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
"""How a text's rows become one vector, and their numbers in llama.h."""
PLAIN_TYPES = ("f32", "f16", "bf16")
"""Those that are not quantized."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    path: Path
    n_gpu_layers: int = -1
    use_extra_bufts: bool = True
    no_alloc: bool = False
    """Read metadata only and pretend to allocate: for memory figures."""


@dataclass(frozen=True, slots=True)
class ContextOptions:
    n_ctx: int
    n_seq_max: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: bool | None = None
    kv_unified: bool = True
    """False: each sequence has n_ctx / n_seq_max cells of its own."""
    n_outputs_max: int | None = None
    """Rows of logits a step may ask for; None: n_seq_max. Drafts need one each."""

    pooling: str | None = None
    """Make one vector per sequence in this way, of POOLINGS; None: logits."""

    @property
    def n_outputs(self) -> int:
        return self.n_seq_max if self.n_outputs_max is None else self.n_outputs_max

    def check(self) -> None:
        """Raise ConfigError for what llama.cpp would answer with an abort."""
        if not 1 <= self.n_seq_max <= MAX_SEQUENCES:
            raise ConfigError(f"n_seq_max is {self.n_seq_max}; it must be 1 to {MAX_SEQUENCES}")
        if not 1 <= self.n_ubatch <= self.n_batch:
            raise ConfigError(f"n_ubatch {self.n_ubatch} must be 1 to n_batch {self.n_batch}")
        if self.n_batch < self.n_seq_max:
            raise ConfigError(f"n_batch {self.n_batch} is below n_seq_max {self.n_seq_max}")
        if not self.n_seq_max <= self.n_outputs <= self.n_batch:
            raise ConfigError(
                f"n_outputs_max {self.n_outputs} must be {self.n_seq_max} to {self.n_batch}"
            )
        if self.n_ctx < self.n_seq_max:
            raise ConfigError(f"n_ctx {self.n_ctx} is below n_seq_max {self.n_seq_max}")
        if self.n_ctx > MAX_CELLS or self.n_batch > MAX_CELLS:
            raise ConfigError(f"n_ctx {self.n_ctx} or n_batch {self.n_batch} is above {MAX_CELLS}")
        if not 1 <= self.n_threads <= MAX_THREADS:
            raise ConfigError(f"n_threads is {self.n_threads}; it must be 1 to {MAX_THREADS}")
        for name in (self.type_k, self.type_v):
            if name not in KV_TYPES:
                raise ConfigError(f"KV type {name!r} is none of {', '.join(KV_TYPES)}")
        if self.type_v not in PLAIN_TYPES and self.flash_attn is False:
            raise ConfigError(
                f"KV type {self.type_v} for values needs flash attention, which is off",
                hint="leave flash_attn unset, or set type_v to f16",
            )
