"""What an answer must match, as text that llguidance compiles. Pure.

JSON is written the way most models write it: ", " between items, ": " after keys, no other
white space. So most of an object's letters are forced, and forced tokens cost no step of their
own. Limits here bound what a client's text may cost; llguidance has its own on top (constrain.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from edgekit_server.engine import schema
from edgekit_server.engine.wire import Grammar
from edgekit_server.errors import GrammarError

MAX_BYTES = 256 * 1024
"""Of one grammar, schemas included."""
MAX_GBNF_BYTES = 64 * 1024
MAX_GBNF_RULES = 500
"""The translation to Lark takes the square of this in Python steps."""

Part = dict[str, object]
"""One grammar of llguidance's list: a name, and a lark_grammar or a json_schema."""

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_IS_LARK = re.compile(r"^\s*(%llguidance\b|start\s*:(?!:))", re.MULTILINE)
_UNICODE = re.compile(r"\\(\\|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})")
_PLAIN_ASCII = re.compile(r"[^A-Za-z0-9 ]")


def source(grammar: Grammar) -> str:
    """Return llguidance's form of a grammar. Raises GrammarError, which says what is wrong."""
    size = sum(len(t.encode("utf-8", "replace")) for t in [grammar.text, *_texts(grammar)])
    if size > MAX_BYTES:
        raise GrammarError(f"a grammar of {size} bytes; the most is {MAX_BYTES}")
    parts = [{"name": "answer", **_body(grammar)}, *_schemas(grammar)]
    if grammar.lead:
        parts.insert(0, {"name": "whole", "lark_grammar": _led(grammar.lead)})
    elif grammar.lead_rule:
        parts.insert(0, {"name": "whole", "lark_grammar": grammar.lead_rule})
    return json.dumps({"grammars": parts})


def _texts(grammar: Grammar) -> Iterable[str]:
    return (text for _, text in grammar.schemas)


def _led(lead: list[int]) -> str:
    """Return a rule: text up to a control token, or none at all, and then the answer.

    `lead` is the id that ends reasoning, or the ids that open and end it.
    """
    text = "THOUGHT: /(.|\\n)*/\n"
    if len(lead) == 1:
        return f"start: THOUGHT <[{lead[0]}]> @answer\n{text}"
    return f"start: (<[{lead[0]}]> THOUGHT <[{lead[1]}]>)? @answer\n{text}"


def _body(grammar: Grammar) -> Part:
    match grammar.kind:
        case "json_schema":
            return {"json_schema": _styled(grammar.text)}
        case "json_object":
            return {"json_schema": {"type": "object", "x-guidance": JSON_STYLE}}
        case "regex":
            return {"lark_grammar": _regex(grammar.text)}
        case "choice":
            return {"lark_grammar": _regex(_choice(grammar.text))}
        case "lark":
            return {"lark_grammar": grammar.text}
        case "gbnf":
            return {"lark_grammar": _gbnf(grammar.text)}
    raise GrammarError(f"there is no grammar of kind {grammar.kind!r}")


def _schemas(grammar: Grammar) -> list[Part]:
    """Return the schemas that a Lark text names @s0, @s1 and so on."""
    parts: list[Part] = []
    for at, (param, text) in enumerate(grammar.schemas):
        try:
            parts.append({"name": f"s{at}", "json_schema": _styled(text)})
        except GrammarError as error:
            raise GrammarError(error.message, param=param) from error
    return parts


def _styled(text: str) -> object:
    checked = schema.checked(text)
    if isinstance(checked, bool):
        checked = {} if checked else {"not": {}}
    return {**checked, "x-guidance": JSON_STYLE}


def _regex(pattern: str) -> str:
    from llguidance import regex_to_lark

    if not pattern:
        raise GrammarError("an empty pattern allows an empty answer only")
    return f"start: /{regex_to_lark(pattern)}/"


def _choice(text: str) -> str:
    """Return a pattern for one of the strings of a JSON list."""
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the choices are no JSON: {error}") from None
    if not isinstance(choices, list) or not choices:
        raise GrammarError("choices are a list of at least one string")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise GrammarError(f"a choice must be a string that is not empty, not {choice!r:.80}")
        if any("\ud800" <= char <= "\udfff" for char in choice):
            raise GrammarError(f"{choice!r:.80} is no valid text")
    return "|".join(_PLAIN_ASCII.sub(_escape, choice) for choice in choices)


def _escape(match: re.Match[str]) -> str:
    return f"\\x{{{ord(match.group()):x}}}"


def _gbnf(text: str) -> str:
    """Translate llama.cpp's notation; text that is Lark already stays, as in llama.cpp."""
    if _IS_LARK.search(text):
        return text
    from llguidance.gbnf_to_lark import GrammarParser, resolve

    n_rules = len(_RULE.findall(text))
    if len(text) > MAX_GBNF_BYTES or n_rules > MAX_GBNF_RULES:
        raise GrammarError(
            f"{n_rules} rules in {len(text)} characters of GBNF; the most are {MAX_GBNF_RULES} in "
            f"{MAX_GBNF_BYTES}. Lark has no such limit"
        )
    try:
        rules = GrammarParser().parse(_UNICODE.sub(_literal, text))
        resolve(rules)
        regular = rules["start"].alternatives.is_terminal()
        lines = [
            f"{'WHOLE_GRAMMAR' if regular and name == 'start' else name}: "
            f"{rule.alternatives.top_str()}"
            for name, rule in rules.items()
        ]
    except Exception as error:  # its own errors, plain Exceptions and RecursionError
        raise GrammarError(f"not GBNF: {error}") from None
    if regular:
        # One lexeme for all of it: between lexemes the first takes what it can, and `[a-z]+ "b"`
        # could never end.
        lines.append("start: WHOLE_GRAMMAR")
    return "\n".join(["%llguidance {}", *lines])


def _literal(match: re.Match[str]) -> str:
    """Return the character of an escape that the translation would garble."""
    said = match.group(1)
    if said == "\\":
        return "\\\\"
    code = int(said[1:], 16)
    if code < 0x80:
        return f"\\x{code:02x}"
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise GrammarError(f"\\{said} is no character")
    return chr(code)
