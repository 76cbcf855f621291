"""Request fields to the engine's parameters."""

from __future__ import annotations

from dataclasses import replace

from ..engine.wire import Generate, Grammar, Hello, Piece, Sampling
from ..errors import RequestError
from .schema import SamplingFields

MOST_TOKENS = 2**31 - 1
"""No context is longer; clients send far more to say "all there is"."""
RANDOM_SEED = 2**32 - 1
"""llama.cpp reads this seed as "random", so no client seed may become it."""

_AS_SENT = (
    "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
    "frequency_penalty", "presence_penalty", "dynatemp_range", "dynatemp_exponent",
    "top_n_sigma", "xtc_probability", "xtc_threshold", "min_keep", "dry_multiplier", "dry_base",
    "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "mirostat",
    "mirostat_tau", "mirostat_eta",
)  # fmt: skip
"""Fields whose name and meaning the engine shares."""


def sampling_of(fields: SamplingFields, hello: Hello, n_logprobs: int | None) -> Sampling:
    """Return llama-server's defaults with what the client sent laid over them."""
    given = {name: getattr(fields, name) for name in _AS_SENT}
    sampling = replace(Sampling(), **{k: v for k, v in given.items() if v is not None})
    if fields.top_k is not None:
        sampling = replace(sampling, top_k=max(fields.top_k, 0))
    seed = None if fields.seed in (None, -1) else fields.seed % RANDOM_SEED
    return replace(
        sampling, seed=seed, logit_bias=_logit_bias(fields, hello), n_logprobs=n_logprobs
    )


def generates(
    prompt: list[Piece] | list[int],
    fields: SamplingFields,
    sampling: Sampling,
    max_tokens: int | None,
    grammar: Grammar | None = None,
    lora: list[tuple[int, float]] | None = None,
    *,
    tools: bool = False,
) -> list[Generate]:
    """Return one engine request per choice; choice i samples with seed + i.

    A stop string or a tool call may end an answer early: with those each token is looked at.
    """
    return [
        Generate(
            id=0,
            prompt=prompt,
            max_tokens=None if max_tokens in (None, -1) else min(max_tokens, MOST_TOKENS),
            ignore_eos=bool(fields.ignore_eos),
            cache_prompt=fields.cache_prompt is not False,
            speculate=fields.n_drafts != 0,
            grammar=grammar,
            lora=lora,
            whole=not fields.stream and not fields.stops and not tools,
            sampling=sampling
            if sampling.seed is None
            else replace(sampling, seed=(sampling.seed + i) % RANDOM_SEED),
        )
        for i in range(fields.n or 1)
    ]


def with_bos(pieces: list[Piece], hello: Hello) -> list[Piece]:
    """Put the BOS token in front if the model wants one and the prompt does not begin with it."""
    if not hello.add_bos or not hello.bos:
        return pieces
    if pieces and pieces[0][1] and pieces[0][0].startswith(hello.bos):
        return pieces
    return [(hello.bos, True), *pieces]


def check_max_tokens(value: int | None, param: str) -> int | None:
    """Return the limit; zero is refused, since there would be no answer to return."""
    if value == 0:
        raise RequestError(f"{param} must be at least 1", param=param, code="invalid_value")
    return value


def _logit_bias(fields: SamplingFields, hello: Hello) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in (fields.logit_bias or {}).items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= token < hello.n_vocab:
            raise RequestError(
                f"logit_bias: {key!r} is no token id of this model (0 to {hello.n_vocab - 1})",
                code="invalid_value",
                param="logit_bias",
            )
        biases[token] = bias
    return biases
