"""Canaries: greedy answers to fixed prompts, before and after quantization."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit_quantize.errors import BadCheckpointError

if TYPE_CHECKING:
    from edgekit_quantize.llama import Runner

ANSWER_TOKENS = 16

Piece = tuple[str, bool]
"""Text, and whether control tokens written out in it are real."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A prompt that is answered in another way now: both answers, and where they part."""

    prompt: int
    at: int
    before: str
    after: str


def digest(prompts: Sequence[Sequence[Piece]]) -> str:
    """Name a set of prompts."""
    return hashlib.sha256(json.dumps([list(p) for p in prompts]).encode()).hexdigest()


def grouped(lengths: Sequence[int], n_ctx: int, n_seq: int) -> list[range]:
    """Return runs of prompts that are answered at once: those that share a context.

    A prompt takes its length and ANSWER_TOKENS cells. Raises BadCheckpointError for one that is
    too long by itself.
    """
    groups: list[range] = []
    start = used = 0
    for i, length in enumerate(lengths):
        need = length + ANSWER_TOKENS
        if need > n_ctx:
            raise BadCheckpointError(
                f"a canary prompt has {length} tokens, {n_ctx - ANSWER_TOKENS} have room",
                code="prompt_too_long",
            )
        if used + need > n_ctx or i - start == n_seq:
            groups.append(range(start, i))
            start, used = i, 0
        used += need
    return [*groups, range(start, len(lengths))] if lengths else []


def tokenize(runner: Runner, prompts: Sequence[Sequence[Piece]]) -> list[list[int]]:
    """Turn prompts into ids; BOS goes before those that do not begin with it themselves.

    Raises BadCheckpointError for a prompt without a single token.
    """
    made = []
    for pieces in prompts:
        ids = [i for text, special in pieces for i in runner.tokenize(text, special=special)]
        first = runner.first
        if ids[: len(first)] != first:
            ids = first + ids
        if not ids:
            raise BadCheckpointError("a canary prompt is empty", code="empty_prompt")
        made.append(ids)
    return made


def answer(runner: Runner, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the likeliest ANSWER_TOKENS after each prompt, fewer where the model ends.

    As many prompts run at once as the runner's context and sequences take.
    """
    settings = runner.settings
    answers: list[list[int]] = []
    for group in grouped([len(p) for p in prompts], settings.n_ctx, settings.n_seq):
        answers += _answer_together(runner, [prompts[i] for i in group])
    return answers


def _answer_together(runner: Runner, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    from edgekit_quantize.llama import Row

    runner.clear()
    answers: list[list[int]] = [[] for _ in prompts]
    pending = [
        Row(token, position, number, position == len(ids) - 1)
        for number, ids in enumerate(prompts)
        for position, token in enumerate(ids)
    ]
    live = list(range(len(prompts)))
    while pending:
        drawn: list[int] = []
        for at in range(0, len(pending), runner.settings.n_batch):
            logits = runner.decode(pending[at : at + runner.settings.n_batch])
            drawn += [int(token) for token in logits.argmax(axis=1)] if len(logits) else []
        going = []
        for number, token in zip(live, drawn, strict=True):
            answers[number].append(token)
            if len(answers[number]) < ANSWER_TOKENS and not runner.is_end(token):
                going.append(number)
        live = going
        pending = [
            Row(answers[n][-1], len(prompts[n]) + len(answers[n]) - 1, n, True) for n in live
        ]
    return answers


def drifts(
    runner: Runner, before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]
) -> list[Drift]:
    """Return what changed, in the order of the prompts."""
    found = []
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if list(old) == list(new):
            continue
        pairs = enumerate(zip(old, new, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
        found.append(Drift(number, at, runner.text(old), runner.text(new)))
    return found
