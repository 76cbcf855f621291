"""What the front is told and when: streams at once, answers that are read whole in lots.

Each message wakes the front, on a core that the next step needs. Nobody sees the tokens of an
answer that is read whole before its end, so only its first output goes out at once.
"""

from __future__ import annotations

from collections.abc import Callable

from edgekit_server.engine.wire import Output, Step

LOT = 16
"""Tokens that wait for each other."""


class Outlet:
    """Called by the step thread with each step; `gather` by the intake, before a request runs."""

    def __init__(self, send: Callable[[Step], None]) -> None:
        self._send = send
        self._held: dict[int, list[Output] | None] = {}
        """Waiting outputs by request; None: nothing has been sent yet."""

    def gather(self, request_id: int) -> None:
        """This answer is read whole: its tokens may wait."""
        self._held[request_id] = None

    def __call__(self, step: Step) -> None:
        ready = [out for output in step.outputs if (out := self._pass(output)) is not None]
        if ready:
            self._send(Step(ready))

    def _pass(self, output: Output) -> Output | None:
        if output.id not in self._held:
            return output
        held = self._held[output.id]
        if output.finish is not None:
            del self._held[output.id]
        elif held is None:
            self._held[output.id] = []
            return output
        waiting = [*(held or []), output]
        if output.finish is None and sum(len(out.tokens) for out in waiting) < LOT:
            self._held[output.id] = waiting
            return None
        if output.finish is None:
            self._held[output.id] = []
        return joined(waiting)


def joined(outputs: list[Output]) -> Output:
    """Return consecutive outputs of one request as one; the last says how it ended."""
    first, last = outputs[0], outputs[-1]
    if first is last:
        return last
    return Output(
        id=last.id,
        tokens=[token for out in outputs for token in out.tokens],
        pieces=[piece for out in outputs for piece in out.pieces],
        logprobs=[entry for out in outputs for entry in out.logprobs],
        top_logprobs=[entry for out in outputs for entry in out.top_logprobs],
        finish=last.finish,
        error=last.error,
        n_cached=first.n_cached,
        prefill_ms=first.prefill_ms,
        n_drafted=last.n_drafted,
        n_accepted=last.n_accepted,
    )
