"""What llama-server's own endpoints take. Its names, its meanings; unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field, StrictInt, field_validator

from .params import RANDOM_SEED
from .schema import MAX_CHOICES, MAX_TOP_LOGPROBS, ConstrainedFields, Lenient

Limit = Annotated[int, Field(ge=-1, le=2**31 - 1)]
Milliseconds = Annotated[float, Field(ge=-1, le=2**53)]
NativePrompt = (
    str | list[StrictInt] | list[str] | list[str | StrictInt] | list[list[str | StrictInt]]
)
"""A list of texts is several prompts; one with an id in it is one prompt."""


class NativeRequest(ConstrainedFields):
    """Fields that /completion and /infill share.

    Accepted and without effect: `id_slot` (sequences are the engine's business), `n_keep` and
    `n_discard` (nothing is ever cut), `samplers` (their order is fixed; each does nothing at its
    neutral value).
    """

    n_predict: Limit | None = Field(
        None, validation_alias=AliasChoices("n_predict", "max_completion_tokens", "max_tokens")
    )
    """0: only compute the prompt, so that the next request finds it; -1: no limit."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, validation_alias=AliasChoices("n_cmpl", "n")
    )
    n_indent: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    n_probs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    t_max_prompt_ms: Milliseconds | None = None
    t_max_predict_ms: Milliseconds | None = None
    """Not above 0: no limit."""
    samplers: str | list[str] | None = None
    id_slot: int | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    response_fields: Annotated[list[str], Field(max_length=256)] | None = None
    """Only these, `/` for what lies within: `timings/prompt_n`. Those that are not there: left
    out."""

    @field_validator("seed", mode="after")
    @classmethod
    def _random_seed(cls, seed: int | None) -> int | None:
        """llama-server's own default, which clients send back, means none."""
        return None if seed == RANDOM_SEED else seed

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _bias_pairs(cls, given: object) -> object:
        """llama-server takes pairs, too; false: never."""
        if not isinstance(given, list):
            return given
        biases: dict[str, object] = {}
        for pair in given:
            match pair:
                case [int(token), bias] if not isinstance(token, bool):
                    biases[str(token)] = -100.0 if bias is False else bias
                case _:
                    raise ValueError("give [token id, bias] pairs; texts are not supported")
        return biases

    @property
    def warms_up(self) -> bool:
        """Whether nothing is to be generated."""
        return self.n_predict == 0


class NativeCompletionRequest(NativeRequest):
    prompt: NativePrompt


class InfillFile(Lenient):
    text: str
    filename: str | None = None


class InfillRequest(NativeRequest):
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[InfillFile] | None = None
    """Pieces of other files, the oldest first."""
    prompt: str = ""
    """What the line holds already; goes after `input_prefix`."""
