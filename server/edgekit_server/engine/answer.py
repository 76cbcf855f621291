"""What one request's drawn tokens mean for it: which are kept, and whether they end it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgekit_server.engine.request import Request
from edgekit_server.engine.sampling import Choice
from edgekit_server.engine.wire import GRAMMAR_FAILED

MOST_FORCED = 32
"""Tokens that a grammar may add at once; more wait for the next step."""


@dataclass(slots=True)
class Taken:
    """What a step added to a request."""

    tokens: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    """Of the drawn tokens; those that a grammar forced have none."""
    finish: str | None = None
    error: str | None = None


def take(request: Request, choices: Sequence[Choice]) -> Taken:
    """Append the drawn tokens up to the one that ends the answer, then what a grammar forces."""
    taken = Taken()
    for choice in choices:
        token = choice.token
        if token is None:
            taken.finish, taken.error = "error", _why(request)
            return taken
        taken.finish = _append(request, token, taken.tokens)
        if taken.finish is not None:
            if len(taken.tokens) > len(taken.choices):
                taken.choices.append(choice)
            return taken
        taken.choices.append(choice)
    for token in forced(request):
        taken.finish = _append(request, token, taken.tokens)
        if taken.finish is not None:
            return taken
    matcher = request.chooser.matcher
    if matcher is not None and matcher.stopped:
        taken.finish = "stop"
    return taken


def _why(request: Request) -> str:
    """Return why no token could be drawn."""
    matcher = request.chooser.matcher
    failed = None if matcher is None else matcher.error
    return "the model computed no finite number" if failed is None else f"{GRAMMAR_FAILED}{failed}"


def _append(request: Request, token: int, tokens: list[int]) -> str | None:
    """Add a token unless it is an end; return the reason if the answer ends here."""
    if token in request.ends:
        return "stop"
    request.tokens.append(token)
    tokens.append(token)
    if len(request.tokens) >= request.limit:
        return "length"
    return None


def forced(request: Request) -> list[int]:
    """Return the tokens that the grammar leaves no choice about, as accepted by all that counts.

    They are computed in the next step, all in one go. Not with logprobs, which need a row of
    logits for each token.
    """
    chooser = request.chooser
    matcher = chooser.matcher
    if matcher is None or chooser.n_logprobs is not None or matcher.stopped:
        return []
    tokens = matcher.forced()[:MOST_FORCED]
    for token in tokens:
        matcher.accept(token)
        if chooser.chain is not None:
            chooser.took(token)
    return tokens


def n_right(drafts: Sequence[int], tokens: Sequence[int]) -> int:
    """Return how many drafts are what was drawn."""
    n = 0
    for draft, token in zip(drafts, tokens, strict=False):
        if draft != token:
            break
        n += 1
    return n
