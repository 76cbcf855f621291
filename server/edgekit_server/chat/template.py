"""Render a model's chat template: sandboxed Jinja with the extensions that Hugging Face defines.

The template always comes with the model, never from a request. Extensions and whitespace rules:
transformers, `utils/chat_template_utils.py` (tojson without HTML escapes, raise_exception,
strftime_now, break and continue, `{% generation %}` as a no-op).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser as JinjaParser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import JsonValue as Json

from ..engine.wire import Piece
from ..errors import BadModelError, RequestError
from .marks import ControlText, Marker
from .normalise import Turn

MAX_RENDERED_CHARS = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rendered:
    pieces: list[Piece]
    """Text and whether control tokens in it are real; the user's text never holds real ones."""
    chars: int

    @property
    def text(self) -> str:
        """The prompt as one text, for looking at, not for tokenizing."""
        return "".join(text for text, _ in self.pieces)


class ChatTemplate:
    """One model's compiled template. `render` is pure and may run in any thread."""

    def __init__(
        self, source: str, *, bos: str | None, eos: str | None, control_tokens: Sequence[str]
    ) -> None:
        """Raise BadModelError if the template is no Jinja."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise BadModelError(f"the model's chat template is broken: {error}") from error
        self._tokens = {"bos_token": bos or "", "eos_token": eos or ""}
        self._control = ControlText(control_tokens)

    def render(
        self,
        turns: list[Turn],
        tools: list[Json] | None = None,
        *,
        enable_thinking: bool | None = None,
    ) -> Rendered:
        """Return the prompt that asks for the next answer.

        RequestError: the template refuses the conversation, or its output is beyond the limit.
        """
        request: list[Json] = [*turns, *(tools or [])]
        marker = Marker(self._control, request)
        context: dict[str, object] = {
            **self._tokens,
            "messages": marker.turns(turns),
            "tools": marker.value(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": True,
        }
        if enable_thinking is not None:
            context["enable_thinking"] = enable_thinking
        parts: list[str] = []
        chars = 0
        try:
            for part in self._template.generate(context):
                chars += len(part)
                if chars > MAX_RENDERED_CHARS:
                    raise RequestError(
                        f"the rendered prompt is beyond {MAX_RENDERED_CHARS} characters",
                        status=413,
                        code="request_too_large",
                        param="messages",
                    )
                parts.append(part)
        except RequestError:
            raise
        except jinja2.TemplateError as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error.message}",
                code="template_refused",
                param="messages",
            ) from error
        except Exception as error:
            # A template is foreign code: whatever it trips over, the request is what it got.
            raise RequestError(
                f"the model's chat template cannot render these messages: {error}",
                code="template_failed",
                param="messages",
            ) from error
        pieces = marker.split("".join(parts))
        return Rendered(pieces, sum(len(text) for text, _ in pieces))


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks answers for training; here it is nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: JinjaParser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)
