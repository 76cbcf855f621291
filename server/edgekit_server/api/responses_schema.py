"""The body of POST /v1/responses; what is neither here nor a sampling field is ignored."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic import JsonValue as Json

from .schema import MAX_TOP_LOGPROBS, Lenient, SamplingFields

WITH_LOGPROBS = "message.output_text.logprobs"


class TextFormat(Lenient):
    """What the text of the answer must match: text, json_object, or json_schema with `schema`."""

    type: str = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Json] | None = Field(None, validation_alias="schema")
    strict: bool | None = None


class TextConfig(Lenient):
    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(Lenient):
    effort: str | None = None
    """`none` turns thinking off in models that can; others have no such setting."""
    summary: str | None = None


class ResponsesRequest(SamplingFields):
    """`max_tokens` counts where `max_output_tokens` is not given."""

    input: str | list[Json]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    """True unless said otherwise, as at OpenAI."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Json]] | None = None
    tool_choice: str | dict[str, Json] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    """`message.output_text.logprobs` is heeded, anything else ignored."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    background: bool | None = None
    conversation: Json = None
    prompt: Json = None

    @property
    def logprobs(self) -> bool:
        """Whether the client wants each token's probability."""
        return WITH_LOGPROBS in (self.include or [])
