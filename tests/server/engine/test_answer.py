"""What drawn tokens do to a request, and tokens that a grammar leaves no choice about."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pytest

from edgekit_server.engine import answer, native
from edgekit_server.engine.request import Request
from edgekit_server.engine.sampling import Choice, Chooser
from edgekit_server.engine.speculate import Speculator
from edgekit_server.engine.wire import Sampling
from tests.support.engine import GREEDY, Driver, driver


class Script:
    """A grammar that wants certain tokens at certain places; None: any but token 7."""

    def __init__(self, *wants: int | None) -> None:
        self._wants = list(wants)
        self.ends = False
        self.accepted: list[int] = []

    def mask_row(self, row: native.Logits) -> None:
        want = self._want()
        if want is None:
            row[7] = -np.inf
        else:
            kept = row[want]
            row[:] = -np.inf
            row[want] = kept

    def _want(self) -> int | None:
        at = len(self.accepted)
        return self._wants[at] if at < len(self._wants) else None

    def allows(self, token: int) -> bool:
        want = self._want()
        return token == want if want is not None else token != 7

    def accept(self, token: int) -> None:
        assert self.allows(token)
        self.accepted.append(token)

    def forced(self) -> list[int]:
        found: list[int] = []
        for want in self._wants[len(self.accepted) :]:
            if want is None:
                break
            found.append(want)
        return found

    error: str | None = None

    @property
    def stopped(self) -> bool:
        return self.ends and len(self.accepted) >= len(self._wants)


def request(script: Script | None, limit: int = 100, n_logprobs: int | None = None) -> Request:
    tokens = array("i", [1, 5])
    sampling = Sampling(temperature=0, n_logprobs=n_logprobs)
    chooser = Chooser(sampling, tokens, n_vocab=300, n_ctx=256, matcher=script)
    return Request(1, tokens, limit, chooser, 0.0, frozenset([2]))


@pytest.mark.parametrize(
    ("drawn", "limit", "tokens", "finish"),
    [
        ([9], 100, [9], None),
        ([9, 10, 11], 100, [9, 10, 11], None),
        ([9, 2, 11], 100, [9], "stop"),
        ([2], 100, [], "stop"),
        ([9, 10, 11], 4, [9, 10], "length"),
        ([9, None], 100, [9], "error"),
    ],
)
def test_what_is_kept(
    drawn: list[int | None], limit: int, tokens: list[int], finish: str | None
) -> None:
    asked = request(None, limit)
    taken = answer.take(asked, [Choice(token) for token in drawn])
    assert (taken.tokens, taken.finish) == (tokens, finish)
    assert [choice.token for choice in taken.choices] == tokens
    assert asked.tokens.tolist() == [1, 5, *tokens]
    assert (taken.error is not None) == (finish == "error")


def test_forced_tokens_follow() -> None:
    script = Script(None, 20, 21, 22, None)
    asked = request(script)
    script.accept(9)  # as choose does
    taken = answer.take(asked, [Choice(9)])
    assert taken.tokens == [9, 20, 21, 22]
    assert len(taken.choices) == 1
    assert script.accepted == [9, 20, 21, 22]
    assert answer.take(request(Script(20, 2, 30)), []).tokens == [20]
    assert answer.take(request(Script(20, 2, 30)), []).finish == "stop"
    assert answer.take(request(Script(20, 21, 22), limit=4), []).finish == "length"
    assert answer.take(request(Script(20, 21), n_logprobs=1), []).tokens == []
    assert len(answer.take(request(Script(*range(20, 90))), []).tokens) == answer.MOST_FORCED


def test_a_grammar_that_is_through_ends_the_answer() -> None:
    for script in (Script(9), Script(9, 20, 21)):
        script.ends = True
        script.accept(9)
        taken = answer.take(request(script), [Choice(9)])
        assert taken.finish == "stop"
        assert taken.tokens == script.accepted


def constrained(engine: Driver, script: Script, sampling: Sampling, prompt: list[int]) -> int:
    tokens = array("i", prompt)
    chooser = Chooser(sampling, tokens, n_vocab=engine.model.n_vocab, n_ctx=2048, matcher=script)
    asked = Request(next(engine.ids), tokens, len(tokens) + 40, chooser, 0.0, frozenset())
    engine.loop.submit(asked)
    return asked.id


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(seed=4), Sampling(seed=1, repeat_penalty=1.4)]
)
@pytest.mark.parametrize("speculator", [None, Speculator()], ids=["plain", "drafts"])
def test_forced_tokens_in_the_engine(
    tiny_model: Path, sampling: Sampling, speculator: Speculator | None
) -> None:
    """They are computed at once: fewer steps, and each is said once and in its place."""
    wants = [None, None, *range(30, 50), None, None, *range(60, 70)]
    with driver(tiny_model, speculator=speculator) as engine:
        other = engine.submit([9, 9, 9], 40)
        script = Script(*wants)
        asked = constrained(engine, script, sampling, [1, 40, 41])
        n_steps = engine.loop.n_steps
        engine.run()
        got = engine.tokens(asked)
        assert len(got) == 40
        assert got == script.accepted
        assert all(w is None or w == t for w, t in zip(wants, got, strict=False))
        assert 7 not in got
        assert engine.loop.n_steps - n_steps <= 40
        assert len(engine.outputs[asked]) <= 10
        assert engine.tokens(other) == engine.alone([9, 9, 9], 40)
        resident = next(
            r for r in engine.loop.table.residents if r.tokens[:3].tolist() == [1, 40, 41]
        )
        assert engine.context.seq_length(resident.seq) == len(resident.tokens)
        # Greedy again, with the forced tokens given as a prompt: the same goes on.
        if sampling is GREEDY:
            free = Script()
            again = constrained(engine, free, sampling, [1, 40, 41, *got[:22]])
            engine.run()
            assert engine.tokens(again)[:2] == got[22:24]
