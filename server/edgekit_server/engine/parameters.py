"""How one request's tokens are to be drawn: llama-server's parameters, names and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

DRY_BREAKERS = ("\n", ":", '"', "*")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Part of wire.Generate. Defaults are those of llama.cpp's common/common.h."""

    temperature: float = 0.8
    """0: the most likely token, after whatever the other samplers removed."""
    dynatemp_range: float = 0.0
    """Half the width of the range in which entropy moves the temperature; 0: off."""
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    """0: off."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    """<= 0: off."""
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    """> 0.5: off."""
    min_keep: int = 0
    """Candidates that typical_p, top_p, min_p and xtc leave at least."""
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """Tokens that the three penalties look back; < 0: all that the context holds."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    """0: no DRY."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    """< 0: all that the context holds."""
    dry_sequence_breakers: list[str] = field(default_factory=lambda: list(DRY_BREAKERS))
    mirostat: int = 0
    """1 or 2: that version stands instead of every other sampler but the temperature."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    n_logprobs: int | None = None
    """None: no logprobs; 0: the chosen token's only; k: the k best as well."""
