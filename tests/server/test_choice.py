"""An output may bring several tokens; a stop string may be in the middle of them."""

from __future__ import annotations

import pytest

from edgekit_server.api.choice import Choice
from edgekit_server.api.params import generates
from edgekit_server.api.schema import CompletionRequest
from edgekit_server.chat.family import PLAIN
from edgekit_server.chat.parser import Parser
from edgekit_server.engine.wire import Output, Sampling, TopToken

PIECES = [b"one ", b"two", b" st", b"op", b" three"]


def outputs(*sizes: int) -> list[Output]:
    made, start = [], 0
    for size in sizes:
        part = PIECES[start : start + size]
        made.append(
            Output(
                1,
                list(range(start, start + size)),
                [(piece, False) for piece in part],
                [TopToken(start + i, piece, -0.5) for i, piece in enumerate(part)],
                [[] for _ in part],
            )
        )
        start += size
    return made


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (5,), (2, 3), (3, 2), (1, 4)])
def test_a_stop_within_an_output_is_as_if_tokens_came_alone(sizes: tuple[int, ...]) -> None:
    choice = Choice(0, Parser(PLAIN, stop=["stop"], tools=False))
    text = ""
    for output in outputs(*sizes):
        if choice.ended():
            break
        text += "".join(getattr(event, "text", "") for event in choice.take(output))
    assert text == "one two "
    assert choice.finish == "stop"
    assert choice.n_tokens == len(choice.logprobs) == 4


@pytest.mark.parametrize(
    ("body", "expected"),
    [({}, True), ({"speculative.n_max": 0}, False), ({"speculative.n_max": 8}, True)],
)
def test_drafts_can_be_declined(body: dict[str, object], expected: bool) -> None:
    fields = CompletionRequest.model_validate({"prompt": "x", **body})
    (request,) = generates([1, 2], fields, Sampling(), 5)
    assert request.speculate is expected
