"""Speeds of a deployment from trials on this very machine, in the form of a prediction. Pure."""

from __future__ import annotations

from edgekit.autotune import Figures
from edgekit.speed import OUTPUT_TOKENS, PROMPT_TOKENS, STEP_S, Estimate, Speed, time_to_first
from edgekit.tuned import Tuned

SPREAD = 0.25
"""Half-width of the range: the server, its clients and other load share the machine."""


def predict(tuned: Tuned, users: int) -> Speed:
    """Speeds for `users` at once, each with the report's prompt and answer."""
    found = tuned.chosen
    depth = PROMPT_TOKENS + OUTPUT_TOKENS // 2
    step = step_s(found, tuned.users, users, depth) + STEP_S
    decode, prefill = _estimate(1 / step), _estimate(1 / found.prefill_s)
    return Speed(
        decode=decode,
        prefill=prefill,
        ttft_ms=time_to_first(prefill, decode, PROMPT_TOKENS, users),
        ceiling_tok_s=None,
        users=users,
    )


def step_s(found: Figures, most: int, users: int, depth: int) -> float:
    """Seconds of one step of `users` at a depth; the trial measured one and `most` at the last.

    Straight lines between what was measured, over depth and over users.
    """
    (near, near_s), (far, far_s) = found.alone[0], found.alone[-1]
    slope = 0.0 if far == near else (far_s - near_s) / (far - near)
    # A line through noise may fall; a step is never faster than half of one that was seen.
    alone = max(near_s + slope * (depth - near), min(near_s, far_s) / 2)
    if most == 1 or users == 1:
        return alone * users
    together = far_s + (found.together - far_s) * (users - 1) / (most - 1)
    return together * alone / far_s


def _estimate(value: float) -> Estimate:
    return Estimate(value, value * (1 - SPREAD), value / (1 - SPREAD), "measured")
