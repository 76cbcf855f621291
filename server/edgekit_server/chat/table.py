"""A family's spec as lookup tables for the parser: marker to meaning, region to markers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .family import CallKind, Form, Spec
from .scan import Scanner

CHANNEL_CALL = Form(CallKind.HEAD_THEN_JSON, ())
"""The form of a call whose name was in its message's header."""


@dataclass(frozen=True, slots=True)
class Table:
    opens: dict[str, Form]
    """Opening marker to form, of those that are tried."""
    at_line: dict[str, Form]
    """First character of a line to form."""
    marks: frozenset[str]
    """Every marker that means something as a control token."""
    shown: frozenset[str]
    """Control tokens to show as text: those of calls, where no tools were offered."""
    in_text: Scanner
    """Markers to look for in ordinary text. Not to be fed: take a fresh one."""
    in_reasoning: Scanner
    in_header: Scanner


@lru_cache(maxsize=64)
def table_of(spec: Spec, *, tools: bool, guess: bool) -> Table:
    """Return the tables; `guess`: tools are known by name, so ordinary text may be a call."""
    forms = [f for f in spec.forms if tools and (guess or not f.guess)]
    opens = {m: form for form in reversed(forms) if not form.line for m in form.open}
    at_line = {m: form for form in reversed(forms) if form.line for m in form.open}
    strict = [m for m, form in opens.items() if not form.guess] if spec.text_markers else []
    text = [m for m, form in opens.items() if form.guess or spec.text_markers]
    text += [f"\n{m}" for m in at_line]
    reasoning: list[str] = []
    marks = {m for m, form in opens.items() if not form.guess}
    if spec.reasoning is not None:
        thought = [spec.reasoning.open, spec.reasoning.close]
        marks.update(thought)
        if spec.text_markers:
            text += thought
            reasoning.append(spec.reasoning.close)
    header: list[str] = []
    if spec.channels is not None:
        header = [*spec.channels.open, *spec.channels.end, spec.channels.message]
        marks.update(header)
    if spec.text_markers:
        text += header
        reasoning += header
    hidden = {m for f in spec.forms for m in (*f.open, *f.inner) if not f.guess}
    return Table(
        opens=opens,
        at_line=at_line,
        marks=frozenset(marks),
        shown=frozenset() if tools else frozenset(hidden),
        in_text=Scanner(text),
        in_reasoning=Scanner([*reasoning, *strict]),
        in_header=Scanner(header if spec.text_markers else []),
    )
