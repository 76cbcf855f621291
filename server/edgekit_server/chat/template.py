"""Render a model's chat template, which always comes with the model, never from a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
from pydantic import JsonValue as Json

from ..engine.wire import Piece
from ..errors import BadModelError, RequestError
from . import jinja
from .marks import ControlText, Marker
from .normalise import Turn
from .renderer import RenderChild

MAX_RENDERED_CHARS = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rendered:
    pieces: list[Piece]
    """Text and whether control tokens in it are real; the user's text never holds real ones."""
    chars: int
    reason: str = ""
    """Why it is not the model's own template that rendered it; "" if it is."""

    @property
    def text(self) -> str:
        """The prompt as one text, for looking at, not for tokenizing."""
        return "".join(text for text, _ in self.pieces)


class ChatTemplate:
    """One model's compiled template. `render` is pure and may run in any thread."""

    def __init__(
        self,
        source: str,
        *,
        bos: str | None,
        eos: str | None,
        control_tokens: Sequence[str],
        limited: bool = False,
        fallback: str | None = None,
    ) -> None:
        """Raise BadModelError if the template is no Jinja.

        `limited`: render in a child process, within limits of time and memory. `fallback`: a
        template of ours for what the model's own refuses.
        """
        try:
            jinja.check(source)
            self._template = None if limited else jinja.compiled(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise BadModelError(f"the model's chat template is broken: {error}") from error
        self._child = RenderChild(source) if limited else None
        self._fallback = jinja.compiled(fallback) if fallback else None
        self._tokens = {"bos_token": bos or "", "eos_token": eos or ""}
        self._control = ControlText(control_tokens)

    def render(
        self,
        turns: list[Turn],
        tools: list[Json] | None = None,
        *,
        enable_thinking: bool | None = None,
        reasoning_effort: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Rendered:
        """Return the prompt that asks for the next answer.

        `context`: what else the family's templates are given. RequestError: the template refuses
        the conversation, fails, or is beyond its limits.
        """
        request: list[Json] = [*turns, *(tools or []), reasoning_effort]
        marker = Marker(self._control, request)
        given: dict[str, object] = {
            **(context or {}),
            **self._tokens,
            "messages": marker.turns(turns),
            "tools": marker.value(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": True,
        }
        if enable_thinking is not None:
            given["enable_thinking"] = enable_thinking
        if reasoning_effort is not None:
            given["reasoning_effort"] = marker.text(reasoning_effort)
        text, reason = self._run(given)
        pieces = marker.split(text)
        return Rendered(pieces, sum(len(text) for text, _ in pieces), reason)

    def _run(self, context: dict[str, object]) -> tuple[str, str]:
        """Return the output, and why it is not the model's own template's ("" if it is)."""
        try:
            try:
                return self._own(context), ""
            except jinja.RefusedError as error:
                if self._fallback is None:
                    raise
                reason = f"the model's own template refuses these messages: {error}"
            return jinja.rendered(self._fallback, context, MAX_RENDERED_CHARS), reason
        except jinja.TooLongError as error:
            raise RequestError(
                str(error), status=413, code="request_too_large", param="messages"
            ) from error
        except jinja.RefusedError as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}",
                code="template_refused",
                param="messages",
            ) from error
        except jinja.FailedError as error:
            raise RequestError(
                f"the model's chat template cannot render these messages: {error}",
                code="template_failed",
                param="messages",
            ) from error

    def _own(self, context: dict[str, object]) -> str:
        if self._child is not None:
            return self._child.render(context, MAX_RENDERED_CHARS)
        assert self._template is not None
        return jinja.rendered(self._template, context, MAX_RENDERED_CHARS)
