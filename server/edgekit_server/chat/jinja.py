"""A chat template as text to text: sandboxed Jinja with the extensions Hugging Face defines.

A template is foreign code. The sandbox keeps it from the machine, not from looping for ever or
from filling the memory, so a server renders in a child process that can be killed: this file is
also that child. (A budget of steps inside the sandbox would not do: one filter or one `~` can
cost any time and memory.) Extensions and whitespace rules: transformers,
`utils/chat_template_utils.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser as JinjaParser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY_BYTES = 2 << 30
"""Address space of the child, Python's own included."""


class TooLongError(Exception):
    """The output is beyond the limit."""


class RefusedError(Exception):
    """The template called raise_exception, or used what it was not given."""


class FailedError(Exception):
    """Whatever else a template trips over."""


_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (TooLongError, RefusedError, FailedError)
}


def check(source: str) -> None:
    """Raise jinja2.TemplateError if a template is none. Runs nothing of it."""
    _environment().parse(source)


def compiled(source: str) -> jinja2.Template:
    """Return the template; jinja2.TemplateError if it is none.

    Its constant parts are worked out here, and `'x' * 10**10` is one.
    """
    return _environment().from_string(source)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.filters["json_or_text"] = _json_or_text
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def rendered(template: jinja2.Template, context: Mapping[str, object], max_chars: int) -> str:
    """Return the output. Raises TooLongError, RefusedError or FailedError."""
    parts: list[str] = []
    chars = 0
    try:
        for part in template.generate(context):
            chars += len(part)
            if chars > max_chars:
                raise TooLongError(f"the rendered prompt is beyond {max_chars} characters")
            parts.append(part)
    except TooLongError:
        raise
    except jinja2.TemplateError as error:
        raise RefusedError(error.message or "") from error
    except Exception as error:
        # A template is foreign code: whatever it trips over, the request is what it got.
        raise FailedError(str(error) or type(error).__name__) from error
    return "".join(parts)


def read_answer(line: bytes) -> str:
    """Return what the child rendered, or raise what it raised."""
    answer = json.loads(line)
    if "text" in answer:
        return str(answer["text"])
    raise _ERRORS[answer["error"]](answer["message"])


def main() -> None:
    """Read the template, then one context a line; answer one line each, until input ends."""
    _limit()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    source = json.loads(requests.readline() or "null")
    template: jinja2.Template | None = None
    while source is not None and (line := requests.readline()):
        asked = json.loads(line)
        try:
            template = template or _compiled(source)
            text = rendered(template, asked["context"], asked["max_chars"])
            answer = json.dumps({"text": text})
        except tuple(_ERRORS.values()) as error:
            answer = json.dumps({"error": type(error).__name__, "message": str(error)[:2000]})
        answers.write(answer.encode() + b"\n")
        answers.flush()


def _compiled(source: str) -> jinja2.Template:
    try:
        return compiled(source)
    except Exception as error:
        raise FailedError(str(error) or type(error).__name__) from error


def _limit() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on.
    try:
        import resource
    except ImportError:  # Windows: time is limited all the same, by the parent.
        return
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ValueError, OSError):
        return


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


def _json_or_text(text: str) -> object:
    """Not Hugging Face's: for our own templates (templates/), which Mistral's v3 form needs."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)


if __name__ == "__main__":
    main()
