"""Grammars on real vocabularies: what is allowed, forced and refused, alone and in the loop."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit_server.engine import constrain
from edgekit_server.engine.answer import MOST_FORCED
from edgekit_server.engine.constrain import Grammars, Matcher
from edgekit_server.engine.tokenizer import Tokenizer
from edgekit_server.engine.wire import Grammar, Sampling
from edgekit_server.errors import GrammarError
from tests.support.engine import GREEDY, Driver, driver

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "grün", "青い"]}, "maxItems": 4},
        "grid": {
            "type": "array",
            "maxItems": 2,
            "items": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
        },
        "ok": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags", "grid", "ok"],
}


class Bench:
    """A stepped engine with its grammars."""

    def __init__(self, engine: Driver) -> None:
        self.engine = engine
        self.tokenizer = Tokenizer(engine.model, engine.tables, engine.context.n_ctx_seq)
        self.grammars = Grammars(engine.tables, self.tokenizer.plain)

    def matcher(self, kind: str, text: str, **more: Any) -> Matcher:
        return self.grammars.compile(Grammar(kind, text, **more))

    def ids(self, *parts: str) -> list[int]:
        """Tokenize; a part that is a control token is one."""
        return self.tokenizer.encode(
            [(part, part in self.engine.tables.control_ids) for part in parts]
        ).tolist()

    def takes(self, matcher: Matcher, *parts: str) -> bool:
        """Whether a matcher takes a text; it has gone through it then."""
        for token in self.ids(*parts):
            if not matcher.allows(token):
                return False
            matcher.accept(token)
        return True

    def answer(self, matcher: Matcher, n: int, sampling: Sampling = GREEDY) -> tuple[str, str]:
        """Return what the model says under a grammar, and how it ended."""
        engine = self.engine
        prompt = self.ids("<s>", "[INST]", "Say it.", "[/INST]")
        request = engine.submit(prompt, n, sampling, ends=engine.tables.ends, matcher=matcher)
        engine.run()
        pieces = engine.tables.pieces
        text = b"".join(pieces[token] for token in engine.tokens(request)).decode()
        return text, engine.finish(request) or ""


@contextmanager
def bench(path: Path) -> Iterator[Bench]:
    with driver(path, n_ctx=4096, n_seq_max=4) as engine:
        yield Bench(engine)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Bench]:
    with bench(tiny_model) as made:
        yield made


@pytest.fixture(scope="module")
def real(pocket_quantized: Path) -> Iterator[Bench]:
    with bench(pocket_quantized) as made:
        yield made


@pytest.fixture(params=["tiny", "real"])
def any_bench(request: pytest.FixtureRequest) -> Bench:
    made: Bench = request.getfixturevalue(request.param)
    return made


TAKES: list[tuple[str, str, list[str], list[str]]] = [
    ("json_schema", '{"type": "integer"}', ["1", "-20", "0"], ["1.5", "01", '"1"', " 1"]),
    ("json_schema", "true", ["1", "[]", '{"a": [null, 1.5]}'], ["x", "tru"]),
    ("json_schema", '{"properties": {"a": {}}}', ["{}", '{"a": 1}', "[]"], ['{"c": 1}', "x"]),
    ("json_schema", '{"enum": ["a", 1, null, "é"]}', ['"a"', "1", "null", '"é"'], ['"b"', "a"]),
    ("json_schema", '{"const": {"a": [1, 2]}}', ['{"a": [1, 2]}'], ['{"a": [1]}']),
    ("json_object", "", ['{"x": [1, {"y": "z"}]}'], ["[]", "1"]),
    ("regex", "[a-c]+x?", ["a", "abcx"], ["x", "ax "]),
    ("regex", r"\d{2}/\d{2}", ["12/34"], ["1/2"]),
    ("regex", "^abc$", ["abc"], ["ab"]),
    ("regex", "(?i)é|ß", ["É", "ß"], ["e"]),
    ("choice", '["yes", "yes sir", "no"]', ["yes", "yes sir", "no"], ["ye", "maybe"]),
    (
        "choice",
        json.dumps(['a"b', "x\ny", "é€😀", "\x7f", "\x00", "a\\b", "/r/", "[ARGS]", "{1}.*"]),
        ['a"b', "x\ny", "é€😀", "\x7f", "\x00", "a\\b", "/r/", "{1}.*"],
        ["a", "{1}"],
    ),
    ("lark", 'start: "a" b+\nb: "c" | "d"', ["ac", "acdc"], ["a", "c"]),
    ("gbnf", 'root ::= "a" [b-z]+ | "\\u00e9" x-y\nx-y ::= [^"]', ["abz", "éq"], ["a", 'é"']),
    ("gbnf", '%llguidance {}\nstart: "lark"', ["lark"], ["gbnf"]),
    ("gbnf", 'root ::= ("ab" | "c"){2,3} # comment', ["abc", "ccc"], ["c", "abab "]),
    ("gbnf", 'root ::= name "b" | "x"\nname ::= [a-z]+', ["ab", "bb", "x"], ["ac", "b"]),
    (
        "gbnf",
        'root ::= "[" ws (num ("," ws num)*)? "]"\nnum ::= "-"? [0-9]+ ("." [0-9]+)?\nws ::= [ ]*',
        ["[1, 2.5]", "[]", "[-3,4]"],
        ["[1,]", "[1"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "right", "wrong"), TAKES, ids=range(len(TAKES)))
def test_what_a_grammar_takes(
    any_bench: Bench, kind: str, text: str, right: list[str], wrong: list[str]
) -> None:
    for answer in right:
        matcher = any_bench.matcher(kind, text)
        assert any_bench.takes(matcher, answer), answer
        assert matcher.accepting, answer
    for answer in wrong:
        matcher = any_bench.matcher(kind, text)
        assert not any_bench.takes(matcher, answer) or not matcher.accepting, answer
        assert matcher.error is None


def test_letters_of_a_control_token_are_letters_and_the_token_is_not(real: Bench) -> None:
    matcher = real.matcher("json_schema", '{"const": "[ARGS]"}')
    forced = matcher.forced()
    assert not real.engine.tables.controls & set(forced)
    assert b"".join(real.engine.tables.pieces[t] for t in forced) == b'"[ARGS]"'
    row = np.zeros(real.engine.model.n_vocab, np.float32)
    matcher = real.matcher("json_schema", '{"type": "string"}')
    assert real.takes(matcher, '"')
    matcher.mask_row(row)
    assert not any(math.isfinite(row[token]) for token in real.engine.tables.controls)
    assert math.isfinite(row[real.ids("a")[0]])


BAD: list[tuple[str, str]] = [
    ("json_schema", '{"type": "no such type"}'),
    ("json_schema", '{"not": {}}'),
    ("json_schema", '{"type": "array", "uniqueItems": true}'),
    ("json_schema", '{"type": "array", "contains": {"const": 1}}'),
    ("json_schema", '{"if": {}, "then": {"minimum": 3}}'),
    ("json_schema", '{"propertyNames": {"maxLength": 3}}'),
    ("json_schema", '{"dependentRequired": {"a": ["b"]}}'),
    ("json_schema", '{"unevaluatedProperties": false}'),
    ("json_schema", '{"oneOf": [{"minimum": 1}, {"maximum": 2}]}'),
    ("json_schema", '{"type": "string", "format": "no such format"}'),
    ("json_schema", '{"type": "string", "pattern": "(((("}'),
    ("json_schema", '{"type": "string", "pattern": "(?=a)b"}'),
    ("json_schema", '{"$ref": "https://example.com/schema.json"}'),
    ("json_schema", '{"$ref": "#/nowhere"}'),
    ("json_schema", '{"enum": []}'),
    ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}'),
    ("json_schema", "false"),
    ("regex", "["),
    ("regex", ""),
    ("regex", "(" * 5000 + ")" * 5000),
    ("regex", "(?<=a)b"),
    ("choice", "[]"),
    ("lark", ""),
    ("lark", "start: nowhere"),
    ("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    ("lark", "start: <[99999999]>"),
    ("lark", "start: <|no such token|>"),
    ("lark", 'start: "' + "a" * 300_000 + '"'),
    ("lark", 'start: %json {"not": {}}'),
    ("lark", 'start: %json {"not": {}, "x-guidance": {"lenient": true}}'),
    ("gbnf", 'root ::= ("a"){2}{3}'),
    ("gbnf", 'root ::= "a'),
    ("gbnf", 'root ::= x\nx ::= y\n y ::= "'),
]


@pytest.mark.parametrize(("kind", "text"), BAD, ids=range(len(BAD)))
def test_bad_grammars_are_refused(tiny: Bench, kind: str, text: str) -> None:
    with pytest.raises(GrammarError) as caught:
        tiny.matcher(kind, text, param="response_format")
    assert (caught.value.code, caught.value.status) == ("invalid_grammar", 400)
    assert caught.value.param == "response_format"
    assert 0 < len(caught.value.message) < 1000
    assert "<state>" not in caught.value.message
    assert tiny.matcher("choice", '["still here"]')


def _rules(form: str, n: int) -> str:
    """Return n rules, each made of the one after it."""
    return "\n".join(form.format(i, i - 1, i - 1) for i in range(n, 0, -1))


GREEDY_FOR_MEMORY = [
    ("regex", "((a{1000}){1000}){1000}"),
    ("regex", "a{1000000}"),
    ("regex", "x[ab]a{100000}"),
    ("regex", "([ab]{1000}c){1000}"),
    ("regex", "(.*a){200}"),
    ("lark", "start: C\nA: /a{1000}/\nB: A{1000}\nC: B{1000}"),
    ("lark", 'start: (("a" "b"){10000} "c"){10000}'),
    ("lark", "start: a\na: a a | /[ab]/ | /a[ab]?/"),
    ("json_schema", '{"type": "string", "pattern": "^((ab){1000}c){1000}$"}'),
    ("lark", 'start: A40\nA0: "a"\n' + _rules("A{}: A{} A{}", 40)),
    ("lark", 'start: a40\na0: "a"\n' + _rules("a{}: a{} a{}", 40)),
    ("gbnf", 'root ::= a40\na0 ::= "a"\n' + _rules("a{} ::= a{} a{}", 40)),
    ("gbnf", _rules("a{} ::= a{}", 490) + '\nroot ::= a490\na0 ::= "a"'),
    ("json_schema", json.dumps({"const": "a" * 200_000})),
    ("json_schema", '{"type": "string", "minLength": 100000000}'),
    ("json_schema", json.dumps({"properties": {f"p{i}": {"type": "string"} for i in range(2000)}})),
    ("json_schema", json.dumps({"enum": [f"item {i}" for i in range(15_000)]})),
    ("choice", json.dumps([f"item {i}" for i in range(10_000)])),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), GREEDY_FOR_MEMORY, ids=range(len(GREEDY_FOR_MEMORY)))
def test_extravagant_grammars_cost_their_request_only(tiny: Bench, kind: str, text: str) -> None:
    """Each of these is refused, or its answer goes on within bounds, or ends in an error."""
    began = time.monotonic()
    try:
        matcher = tiny.matcher(kind, text)
    except GrammarError:
        return
    request = tiny.engine.submit(
        [1, 20, 21], 40, replace(GREEDY, temperature=1.0, seed=1), matcher=matcher
    )
    tiny.engine.run()
    finish = tiny.engine.finish(request)
    assert finish in ("stop", "length", "error")
    if finish == "error":
        assert (tiny.engine.outputs[request][-1].error or "").startswith("grammar: ")
    assert time.monotonic() - began < 20


def test_too_slow_to_compile_is_refused(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrain, "COMPILE_S", 0.0)
    with pytest.raises(GrammarError, match="to compile"):
        tiny.matcher("choice", '["never seen before"]', param="x")
    monkeypatch.undo()
    assert tiny.matcher("choice", '["seen next"]')


def test_the_same_grammar_compiles_once_and_its_matchers_are_apart(tiny: Bench) -> None:
    first = tiny.matcher("regex", "[ab]{5}")
    n_kept = len(tiny.grammars._kept)
    second = tiny.matcher("regex", "[ab]{5}")
    assert len(tiny.grammars._kept) == n_kept
    assert tiny.takes(first, "aab")
    assert tiny.takes(second, "bbbbb")
    assert second.stopped
    assert not first.stopped
    for i in range(constrain.MAX_KEPT + 5):
        tiny.matcher("choice", f'["{i}"]')
    assert len(tiny.grammars._kept) == constrain.MAX_KEPT


def test_what_the_mask_leaves_is_allowed(any_bench: Bench) -> None:
    """Where text is forced, the mask leaves the tokenizer's own token; others are allowed too."""
    rng = np.random.default_rng(1)
    matcher = any_bench.matcher("json_schema", json.dumps(PERSON))
    n_vocab = any_bench.engine.model.n_vocab
    for _ in range(40):
        row = np.full(n_vocab, 7.0, np.float32)
        matcher.mask_row(row)
        allowed = np.flatnonzero(np.isfinite(row))
        assert set(row[allowed]) == {7.0}
        allows = {t for t in range(n_vocab) if matcher.allows(t)}
        assert set(allowed.tolist()) == allows or {*matcher.forced()[:1]} == {*allowed} < allows
        matcher.accept(int(rng.choice(allowed)))
        if matcher.stopped:
            break


def test_rollback_returns_to_the_same_state(tiny: Bench) -> None:
    matcher = tiny.matcher("regex", "(ab|cd)+e")
    assert tiny.takes(matcher, "abc")
    assert matcher.forced() == tiny.ids("d")
    matcher.rollback(1)
    assert matcher.forced() == []
    assert tiny.takes(matcher, "e")
    assert matcher.stopped
    matcher.rollback(3)
    assert tiny.takes(matcher, "cde")
    with pytest.raises(ValueError, match="back"):
        matcher.rollback(100)


def test_forced_tokens_are_told_in_parts_and_in_order(tiny: Bench) -> None:
    text = "".join(chr(97 + i % 26) for i in range(300))
    matcher = tiny.matcher("choice", json.dumps([text]))
    told: list[int] = []
    while tokens := matcher.forced():
        assert len(tokens) <= constrain.MOST_FORCED
        for token in tokens[:MOST_FORCED]:
            matcher.accept(token)
            told.append(token)
    assert told == tiny.ids(text)
    assert matcher.stopped


def test_one_vocabulary_serves_many_threads(tiny: Bench) -> None:
    texts: dict[int, str] = {}

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        matcher = tiny.matcher("json_schema", json.dumps(PERSON))
        said = bytearray()
        while not matcher.stopped:
            row = np.zeros(tiny.engine.model.n_vocab, np.float32)
            matcher.mask_row(row)
            token = int(rng.choice(np.flatnonzero(np.isfinite(row))))
            matcher.accept(token)
            said += tiny.engine.tables.pieces[token]
        texts[seed] = said.decode()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 6
    for text in texts.values():
        jsonschema.validate(json.loads(text), PERSON)


def test_matchers_do_not_use_up_what_they_share(tiny: Bench) -> None:
    """The limit on lexer states is one answer's, not that of all answers ever."""
    for seed in range(30):
        matcher = tiny.matcher("regex", "(.*a){30}")
        rng = np.random.default_rng(seed)
        for _ in range(60):
            assert tiny.takes(matcher, chr(int(rng.integers(97, 123))))
        assert matcher.error is None


SAMPLINGS = [
    GREEDY,
    Sampling(seed=1),
    Sampling(seed=2, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0),
    Sampling(seed=3, repeat_penalty=1.3, presence_penalty=1.0),
    Sampling(seed=4, n_logprobs=2),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_answers_fit_the_schema(any_bench: Bench, sampling: Sampling) -> None:
    for turn in range(3):
        matcher = any_bench.matcher("json_schema", json.dumps(PERSON))
        seed = None if sampling.seed is None else sampling.seed + 10 * turn
        text, finish = any_bench.answer(matcher, 600, replace(sampling, seed=seed))
        assert finish == "stop"
        jsonschema.validate(json.loads(text), PERSON)


def test_forced_tokens_cost_no_steps(tiny: Bench) -> None:
    before = tiny.engine.loop.n_steps
    text, finish = tiny.answer(tiny.matcher("choice", '["a fixed answer of some length"]'), 100)
    assert (text, finish) == ("a fixed answer of some length", "stop")
    assert tiny.engine.loop.n_steps - before <= 3


def test_forced_tokens_stop_at_max_tokens(tiny: Bench) -> None:
    text, finish = tiny.answer(tiny.matcher("choice", '["a fixed answer of some length"]'), 7)
    assert finish == "length"
    assert "a fixed answer of some length".startswith(text)
    assert len(tiny.ids(text)) == 7


def test_logprobs_come_for_each_token(tiny: Bench) -> None:
    """A forced token is drawn from its row then, so its logprob is the model's own."""
    matcher = tiny.matcher("choice", '["fixed"]')
    request = tiny.engine.submit([1, 9], 50, Sampling(seed=1, n_logprobs=1), matcher=matcher)
    tiny.engine.run()
    outputs = tiny.engine.outputs[request]
    assert [p.text for o in outputs for p in o.logprobs] == [b"f", b"i", b"x", b"e", b"d"]
    assert all(-50 < p.logprob < 0 for o in outputs for p in o.logprobs)


def test_only_the_end_may_come_and_does(tiny: Bench) -> None:
    """A token of the grammar's own ends this one, and max_tokens ends one without an end."""
    text, finish = tiny.answer(tiny.matcher("lark", 'start: "ab" <[2]>'), 50)
    assert (text, finish) == ("ab", "stop")
    text, finish = tiny.answer(tiny.matcher("regex", "[a-z]+!{3,}"), 30, Sampling(seed=1, min_p=0))
    assert finish in ("length", "stop")


def test_reasoning_goes_before_the_answer(real: Bench) -> None:
    ids = real.engine.tables.control_ids
    start, end = ids["[INST]"], ids["[/INST]"]  # any two control tokens will do
    opened = real.matcher("choice", '["yes"]', lead=[end])
    assert real.takes(opened, "let me see: no? ", "[/INST]", "yes")
    assert opened.stopped
    for parts in (["[INST]", "hm", "[/INST]", "yes"], ["yes"], ["[INST]", "[/INST]", "yes"]):
        matcher = real.matcher("choice", '["yes"]', lead=[start, end])
        assert real.takes(matcher, *parts), parts
        assert matcher.stopped
    assert not real.takes(real.matcher("choice", '["yes"]', lead=[start, end]), "hm")


def test_schemas_of_a_lark_grammar_and_which_is_at_fault(tiny: Bench) -> None:
    good, bad = '{"type": "integer"}', '{"not": {}}'
    matcher = tiny.matcher("lark", 'start: @s0 ";" @s1', schemas=[("a", good), ("b", good)])
    assert tiny.takes(matcher, "12;7")
    with pytest.raises(GrammarError, match="not") as caught:
        tiny.matcher("lark", "start: @s0 | @s1", param="tools", schemas=[("a", good), ("b", bad)])
    assert caught.value.param == "b"
    lenient = [("a", good), ("b", bad)]
    matcher = tiny.matcher("lark", 'start: @s0 ";" @s1', schemas=lenient, lenient=True)
    assert tiny.takes(matcher, '12;{"x": 1}')


SCALARS = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 8)),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-500, 500),
        st.integers(0, 300),
    ),
    st.builds(
        lambda low, more: {"type": "number", "minimum": low, "exclusiveMaximum": low + more},
        st.integers(-50, 50),
        st.integers(1, 30),
    ),
    st.builds(lambda v: {"enum": v}, st.lists(st.text(max_size=5), min_size=1, max_size=4)),
    st.builds(lambda v: {"const": v}, st.one_of(st.text(max_size=6), st.integers(), st.none())),
)


def _object(properties: dict[str, Any], n_required: int) -> dict[str, Any]:
    required = list(properties)[:n_required]
    return {"type": "object", "properties": properties, "required": required}


SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(
            lambda items, least, more: {
                "type": "array", "items": items, "minItems": least, "maxItems": least + more,
            },
            inner, st.integers(0, 2), st.integers(0, 2),
        ),
        st.builds(
            _object, st.dictionaries(st.text(max_size=5), inner, max_size=3), st.integers(0, 3)
        ),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**31))
def test_any_small_schema_is_fitted(tiny: Bench, schema: dict[str, Any], seed: int) -> None:
    matcher = tiny.matcher("json_schema", json.dumps(schema))
    text, finish = tiny.answer(matcher, 1500, Sampling(seed=seed, temperature=1.5, top_k=0))
    assert finish == "stop", text
    jsonschema.validate(json.loads(text), schema)
