"""What Anthropic's clients may send. Unknown fields are ignored; known ones must make sense.

Field names: Anthropic's API reference. Agents send many more (context_management, metadata,
cache_control, service_tier), none of which changes what a local model would answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic import JsonValue as Json

from .schema import MAX_STOPS, Lenient, Stop

Blocks = list[dict[str, Json]]


class MessageParam(Lenient):
    """`system` may stand in the middle: agents put reminders there."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class ToolParam(Lenient):
    """One tool; a `type` other than `custom` names one that the vendor runs or knows by heart."""

    type: str | None = None
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Json] | None = None


class ToolChoiceParam(Lenient):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(Lenient):
    """`disabled` and `enabled` are told to the template; any other type leaves it the choice."""

    type: str
    display: str | None = None


class FormatParam(Lenient):
    type: Literal["json_schema"]
    schema_: dict[str, Json] = Field(validation_alias="schema")


class OutputConfig(Lenient):
    effort: str | None = None
    format: FormatParam | None = None


class CountTokensRequest(Lenient):
    """Everything that the prompt depends on."""

    model: str | None = None
    messages: Annotated[list[MessageParam], Field(min_length=1)]
    system: str | Blocks | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None
    output_config: OutputConfig | None = None
    output_format: FormatParam | None = None
    """The beta's place for `output_config.format`."""


class MessagesRequest(CountTokensRequest):
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Left out, which Anthropic refuses: all the room there is."""
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    stream: bool | None = None
