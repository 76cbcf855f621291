"""What clients may send. Unknown fields are ignored; known ones must make sense."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, StrictInt
from pydantic import JsonValue as Json

MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_BREAKERS = 16
MAX_BREAKER_BYTES = 40
"""llama.cpp would cut a longer one."""


def _breaker(text: str) -> str:
    if not 0 < len(text.encode()) <= MAX_BREAKER_BYTES or "\0" in text:
        raise ValueError(f"a sequence breaker has 1 to {MAX_BREAKER_BYTES} bytes, none of them 0")
    return text


Stop = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
Prompt = str | list[StrictInt] | list[str] | list[list[StrictInt]]
Breaker = Annotated[str, AfterValidator(_breaker)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Lenient(BaseModel):
    """Ignores what it does not know; refuses NaN and infinities."""

    model_config = ConfigDict(
        extra="ignore", allow_inf_nan=False, frozen=True, protected_namespaces=()
    )


class StreamOptions(Lenient):
    include_usage: bool | None = None


class LoraScale(Lenient):
    """One adapter of a request, by place (llama-server's way) or by name."""

    id: Annotated[StrictInt, Field(ge=0, le=2**31 - 1)] | None = None
    name: str | None = None
    scale: Annotated[float, Field(ge=-100, le=100)] = 1.0


class SamplingFields(Lenient):
    """Fields that both dialects share. None, sent or not, means llama-server's default."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, validation_alias=AliasChoices("repeat_penalty", "repetition_penalty")
    )
    repeat_last_n: Annotated[int, Field(ge=-1, le=2**20)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    dynatemp_range: Annotated[float, Field(ge=0, le=100)] | None = None
    dynatemp_exponent: Annotated[float, Field(ge=0, le=100)] | None = None
    top_n_sigma: Annotated[float, Field(ge=-1, le=1000)] | None = None
    xtc_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    xtc_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    min_keep: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=0, le=2**20)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1, le=2**20)] | None = None
    dry_sequence_breakers: (
        Annotated[list[Breaker], Field(min_length=1, max_length=MAX_BREAKERS)] | None
    ) = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Int64 | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=-1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    lora: Annotated[list[LoraScale], Field(max_length=64)] | None = None
    """Adapters for this request, all others off; left out: each at its own scale."""
    cache_prompt: bool | None = None
    n_drafts: Annotated[int, Field(ge=0)] | None = Field(None, validation_alias="speculative.n_max")
    """llama-server's name. 0: guess no tokens ahead; how many else is the engine's to measure."""

    @property
    def stops(self) -> list[str]:
        """The stop strings, empty ones left out."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class Function(Lenient):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Json] | None = None


class ToolChoiceFunction(Lenient):
    name: str


class ToolChoice(Lenient):
    type: str = "function"
    function: ToolChoiceFunction


class ResponseFormat(Lenient):
    """OpenAI nests the schema; llama.cpp and others put it beside the type."""

    type: str
    json_schema: dict[str, Json] | None = None
    schema_: dict[str, Json] | bool | None = Field(None, validation_alias="schema")


class ConstrainedFields(SamplingFields):
    """What the answer must match, by the names of OpenAI, llama.cpp and vLLM: one at most."""

    response_format: ResponseFormat | None = None
    json_schema_: dict[str, Json] | bool | None = Field(None, validation_alias="json_schema")
    grammar: str | None = None
    """GBNF; Lark if it begins with %llguidance."""
    guided_json: dict[str, Json] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Json] | None = None


class ChatTemplateKwargs(Lenient):
    enable_thinking: bool | None = None


class ChatRequest(ConstrainedFields):
    messages: list[dict[str, Json]]
    max_completion_tokens: Annotated[int, Field(ge=-1)] | None = None
    tools: list[dict[str, Json]] | None = None
    tool_choice: Literal["none", "auto", "required", "any"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None


class CompletionRequest(ConstrainedFields):
    prompt: Prompt
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
