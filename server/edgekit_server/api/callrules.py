"""How a family's calls are written, as rules of a Lark grammar for llguidance.

A marker that is a control token in this vocabulary is that token; any other is its letters.
Tool number i writes its arguments by the rule @s{i}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..chat.family import Form, Reasoning, Spec
from ..engine.wire import Hello

_ID = "/[a-zA-Z0-9]{9}/"
_HOLE = re.compile(r"\{(name|quoted|id|maybe_id|json|thought[^}]+)\}")
ANY = r"/(.|\n)*/"


@dataclass(frozen=True, slots=True)
class Rules:
    """Grammars of the answers that may call."""

    lead: str
    """What may go before calls that are demanded."""
    calls: str
    after_opening: str | None
    """Free text, with calls after whatever opens one. None: nothing tells where one begins."""

    @property
    def demanded(self) -> str:
        """Calls and nothing else."""
        return f"start: {self.lead}calls\n{self.calls}"

    def instead_of(self, answer: str) -> str:
        """Calls, or an answer by another rule."""
        return f"start: {self.lead}calls | {answer}\n{self.calls}"


def rules_of(spec: Spec, hello: Hello, names: Sequence[str], *, single: bool) -> Rules | None:
    """Return the rules for calls of tools; None if this model cannot write any.

    `single`: one call at most.
    """
    form = spec.forms[0] if spec.forms else None
    if form is None or not form.written:
        return None
    tokens = _tokens(spec, hello)
    before, between, after = form.many
    shape = before + form.written + between + after
    needed = [] if spec.text_markers or form.guess else [*form.open, *form.inner]
    if any(marker in shape and marker not in tokens for marker in needed):
        return None
    write = _Writer(tokens)
    single = single or spec.channels is not None
    ones = [write.one(form.written, at, name) for at, name in enumerate(names)]
    return Rules(
        lead=f"({write.line(spec.channels.lead)})? " if spec.channels else "",
        calls=_calls(write, form, ones, single=single),
        after_opening=_after_opening(write, spec, form, hello, names, single=single),
    )


def after_thought(thought: Reasoning, *, begun: bool) -> str:
    """Return the rule of reasoning in letters, which the prompt has `begun`, and @answer."""
    opening = "" if begun else f"{quoted(thought.open)} "
    lead = f"{opening}upto BLANK?" if begun else f"({opening}upto BLANK?)?"
    end = _pattern(thought.close)
    return f"start: {lead} @answer\nupto[lazy]: /(.|\\n)*{end}/\nBLANK: /[ \\n]+/\n"


def final_message(spec: Spec, hello: Hello) -> str | None:
    """Return the rule of reasoning, if any, and the header of the message that is @answer."""
    channels = spec.channels
    tokens = _tokens(spec, hello)
    if channels is None:
        return None
    write = _Writer(tokens)
    lead, final = write.line(channels.lead), write.line(channels.final)
    return "\n".join([f"start: ({lead})? {final} @answer", *write.terminals])


def _calls(write: _Writer, form: Form, ones: Sequence[str], *, single: bool) -> str:
    """Return the rules `calls` and `one`, of any tool."""
    before, between, after = map(write.line, form.many)
    more = f" ({between} one)*" if between else " one*"
    more = "" if single else more
    lines = [
        f"calls: {before} one{more} {after}".rstrip(),
        f"one: {' | '.join(f'c{at}' for at in range(len(ones)))}",
        *(f"c{at}: {one}" for at, one in enumerate(ones)),
    ]
    return "\n".join([*lines, *write.terminals])


def _after_opening(
    write: _Writer, spec: Spec, form: Form, hello: Hello, names: Sequence[str], *, single: bool
) -> str | None:
    whole = form.many[0] + form.written
    opening = next((m for m in form.open if whole.startswith(m)), None)
    if opening is None or form.guess or spec.channels is not None:
        return None
    ones = [write.one(form.written, at, name) for at, name in enumerate(names)]
    if opening in write.tokens:
        closed = {write.tokens[m] for m in write.tokens if m in whole + form.many[2]}
        closed |= {hello.control_ids[hello.eos]} if hello.eos in hello.control_ids else set()
        free = f"free: <[^{','.join(map(str, sorted(closed)))}]>"
        return f"start: (free | calls)*\n{free}\n{_calls(write, form, ones, single=single)}"
    # The opening is letters: text runs up to its first occurrence, and what follows is a call.
    if form.many[0]:
        rest = Form(
            form.kind, (), written=form.written,
            many=(form.many[0].removeprefix(opening), *form.many[1:]),
        )  # fmt: skip
    else:
        ones = [
            write.one(form.written.removeprefix(opening), at, name) for at, name in enumerate(names)
        ]
        rest, single = Form(form.kind, ()), True
    letters = _pattern(opening)
    thought = [spec.reasoning.open, spec.reasoning.close] if spec.reasoning else []
    tokens = [str(hello.control_ids[m]) for m in thought if m in hello.control_ids]
    other = f" | TEXT? <[{','.join(tokens)}]>" if tokens else ""
    return "\n".join(
        [
            f"start: (upto calls{other})* TEXT?",
            f"upto[lazy]: /(.|\\n)*{letters}/",
            f"TEXT: /(.|\\n)+/ & ~/(.|\\n)*{letters}(.|\\n)*/",
            _calls(write, rest, ones, single=single),
        ]
    )


def _pattern(text: str) -> str:
    """Return a pattern of llguidance's for exactly these letters."""
    return re.sub(r"[^A-Za-z0-9]", lambda hit: f"\\x{{{ord(hit.group()):x}}}", text)


def _markers(spec: Spec) -> set[str]:
    """Return the markers that a spec names, those of ordinary text left out."""
    found = {m for f in spec.forms if not f.guess for m in (*f.open, *f.close, *f.inner)}
    if spec.channels is not None:
        found |= {*spec.channels.open, *spec.channels.end, spec.channels.message}
    return found


def _tokens(spec: Spec, hello: Hello) -> dict[str, int]:
    return {m: hello.control_ids[m] for m in sorted(_markers(spec)) if m in hello.control_ids}


class _Writer:
    """Turns the text of a spec into the right side of a rule."""

    def __init__(self, tokens: dict[str, int]) -> None:
        self.tokens = tokens
        self.terminals: list[str] = []
        markers = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
        self._split = re.compile(
            f"({_HOLE.pattern}|{markers})" if markers else f"({_HOLE.pattern})"
        )

    def line(self, text: str) -> str:
        """Return what a text without a tool's name becomes."""
        return self.one(text, 0, "")

    def one(self, text: str, at: int, name: str) -> str:
        """Return what one call of tool number `at` looks like."""
        parts: list[str] = []
        literal = ""
        place = 0
        for hit in self._split.finditer(text):
            literal += text[place : hit.start()]
            place = hit.end()
            hole, word = hit.group(2), hit.group()
            if hole == "name":
                literal += name
            elif hole == "quoted":
                literal += json.dumps(name, ensure_ascii=False)
            else:
                if literal:
                    parts.append(quoted(literal))
                literal = ""
                parts.append(self._part(hole, word, at))
        literal += text[place:]
        if literal:
            parts.append(quoted(literal))
        return " ".join(parts)

    def _part(self, hole: str | None, word: str, at: int) -> str:
        if hole == "json":
            return f"@s{at}"
        if hole == "id":
            return _ID
        if hole == "maybe_id":
            return f'(", \\"id\\": \\"" {_ID} "\\"")?'
        if hole is not None and hole.startswith("thought"):
            until = hole.removeprefix("thought")
            if until in self.tokens:
                self.terminals = [f"THOUGHT: {ANY}"]
                return f"THOUGHT <[{self.tokens[until]}]>"
            self.terminals = [f"thought[lazy]: /(.|\\n)*{_pattern(until)}/"]
            return "thought"
        return f"<[{self.tokens[word]}]>"


def quoted(text: str) -> str:
    """Return a Lark string, which is a JSON string."""
    return json.dumps(text, ensure_ascii=False)
