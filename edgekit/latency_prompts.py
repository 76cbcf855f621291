"""Prompts of an exact length that share nothing, and the calibration that proves the length."""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx

from edgekit.errors import (
    BadDataError,
    DeniedError,
    EdgekitError,
    EngineFailedError,
    MissingInputError,
    UsageError,
)
from edgekit.latency_client import stream_one

CALIBRATION_TRIES = 4
Prompt = list[int] | str

# Ordinary tokens in every vocabulary we know: above the control and byte tokens of the Mistral
# and Gemma families, below the control tokens of Llama 3 and Qwen, inside a vocabulary of 4,096.
TOKEN_IDS = range(1300, 4000)
# Common words: with its leading space, one token each in byte-level and SentencePiece vocabularies.
WORDS = tuple("the of and in to is that it for on with as at by from be are was this".split())  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that share no prefix with each other, so that nothing can be reused.

    As token ids, `n` tokens are `n` ids; the first id differs between any 2,700 prompts in a
    row. As text (for servers that refuse ids), `n` words; the first twelve, at random.
    """

    rng: random.Random
    as_ids: bool
    first_ids: list[int]

    @classmethod
    def new(cls, rng: random.Random, *, as_ids: bool) -> Prompts:
        return cls(rng, as_ids, [])

    def make(self, n: int) -> Prompt:
        """Return a fresh prompt of `n` ids, or of `n` words."""
        if not self.as_ids:
            return " " + " ".join(self.rng.choices(WORDS, k=n))
        if not self.first_ids:
            self.first_ids.extend(self.rng.sample(TOKEN_IDS, len(TOKEN_IDS)))
        return [self.first_ids.pop(), *self.rng.choices(TOKEN_IDS, k=max(0, n - 1))]


def request_body(model: str, prompt: Prompt, output_tokens: int) -> dict[str, object]:
    """Return the body of one measured request: greedy, an exact answer length, usage asked for.

    Prompts of words may begin alike, so for them the server is asked to keep its cache out of it
    (`cache_prompt`, which llama-server and edgekit know; others ignore it, and the count of
    cached tokens tells). Drafts are turned off the same way: the answers to random prompts repeat
    themselves, and guessing them right says nothing of real text.
    """
    cache = {"cache_prompt": False} if isinstance(prompt, str) else {}
    return {
        **cache,
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "speculative.n_max": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


@dataclass(frozen=True, slots=True)
class Load:
    """What every level of one run has in common."""

    model: str
    prompts: Prompts
    prompt_size: int
    output_tokens: int
    timeout_s: float

    def body(self, prompt_size: int, output_tokens: int) -> dict[str, object]:
        prompt: Prompt = self.prompts.make(prompt_size)
        return request_body(self.model, prompt, output_tokens)


async def calibrate(
    client: httpx.AsyncClient,
    model: str,
    rng: random.Random,
    prompt_tokens: int,
    output_tokens: int,
    timeout_s: float,
) -> tuple[Load, list[str]]:
    """Find how to send prompts of the asked length, by what the server's usage says.

    Token ids first; a server that refuses them gets words, in a number corrected until the
    counts agree. This is also the warm-up of the server. Returns the load and what to say of it.

    Raises: see `edgekit.latency.measure`.
    """
    as_ids = True
    size, seen = prompt_tokens, None
    for _ in range(CALIBRATION_TRIES):
        prompts = Prompts.new(rng, as_ids=as_ids)
        load = Load(model, prompts, size, output_tokens, timeout_s)
        sample = await stream_one(client, load.body(size, min(4, output_tokens)), timeout_s)
        if as_ids and sample.error in ("http_400", "http_415", "http_422"):
            refused = await _explain(client, load)
            # An overlong prompt is refused as words too: only its own error tells them apart.
            if refused is not None and refused.code == "prompt_too_long":
                raise refused
            as_ids = False
            continue
        if sample.error is not None:
            raise await _explain(client, load) or EngineFailedError(
                f"the warm-up request failed: {sample.error}",
                code="bench_failed",
                hint="look at the server's log",
            )
        seen = sample.prompt_tokens
        if seen is None or seen == prompt_tokens:
            break
        size = _corrected(size, seen, prompt_tokens)
    notes = (
        []
        if as_ids
        else ["the server takes no token ids: prompts are words, their length as it counted"]
    )
    return Load(model, Prompts.new(rng, as_ids=as_ids), size, output_tokens, timeout_s), notes


def _corrected(size: int, seen: int, asked: int) -> int:
    """Return how many ids or words to send when `size` of them were counted as `seen` tokens.

    Far off means that one word is not one token, so the size is scaled; near, the server adds a
    fixed few (BOS), so the difference is taken off.
    """
    near = abs(seen - asked) <= max(8, asked // 8)
    return max(1, size + asked - seen if near else round(size * asked / seen))


async def _explain(client: httpx.AsyncClient, load: Load) -> EdgekitError | None:
    """Ask again without streaming and turn the refusal into an error a person can act on."""
    body = load.body(load.prompt_size, min(4, load.output_tokens)) | {"stream": False}
    body.pop("stream_options")
    try:
        response = await client.post("completions", json=body, timeout=load.timeout_s)
    except httpx.HTTPError as error:
        return EngineFailedError(
            f"no answer from {client.base_url}: {type(error).__name__}",
            code="bench_unreachable",
            hint="start the server first: edgekit deploy MODEL or edgekit serve FILE.gguf",
        )
    status, (code, message) = response.status_code, _error_of(response)
    if status == 200:
        return None
    if status in (401, 403):
        return DeniedError(
            message, code="bench_denied", hint="give the server's key with --api-key"
        )
    if status == 404:
        return MissingInputError(
            message, code="no_such_model", hint=f"list its models: {client.base_url}models"
        )
    if code == "context_length_exceeded" or "context length" in message:
        return UsageError(
            message, code="prompt_too_long", hint="ask for a shorter prompt or a longer context"
        )
    if status in (400, 415, 422):
        return BadDataError(
            message, code="bench_refused", hint="is this an OpenAI-compatible completions server?"
        )
    return EngineFailedError(
        f"HTTP {status}: {message}", code="bench_failed", hint="look at the server's log"
    )


def _error_of(response: httpx.Response) -> tuple[str | None, str]:
    try:
        error = response.json()["error"]
        return error.get("code"), str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, f"HTTP {response.status_code}: {response.text[:200]}"
