"""Who sent a request, so that the newest fill-in-the-middle request of a client wins.

The same client is: the same API key, and the same session header where there is one, else the
same program (`user-agent`) at the same address. Not the same connection: an older request that is
still open has one of its own. A client that wants several at a time gives each a session of its
own, `x-session-id: ANYTHING`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from typing import TypeVar

from fastapi import Request

from ..call import Call
from ..newest import Turn
from .body import while_connected

T = TypeVar("T")

SESSION_HEADERS = ("x-session-id", "x-session-affinity", "x-claude-code-session-id", "session-id")
"""As editors and agents call it; the first that is there counts."""


def client_of(request: Request) -> str:
    """Return a name for the sender of a request; it holds no secret."""
    headers = request.headers
    key = headers.get("authorization") or headers.get("x-api-key", "")
    session = next((f"{h}={headers[h]}" for h in SESSION_HEADERS if headers.get(h)), None)
    if session is None:
        host = request.client.host if request.client else ""
        # Behind a proxy all have its address. Nothing is trusted here: it only tells apart.
        session = f"{headers.get('user-agent', '')}|{host}|{headers.get('x-forwarded-for', '')}"
    return hashlib.sha256(f"{key}\n{session}".encode("utf-8", "surrogateescape")).hexdigest()


async def newest(
    request: Request, begin: Coroutine[object, object, T], call_of: Callable[[T], Call]
) -> tuple[T, Turn]:
    """Begin a fill-in-the-middle request as the newest of its client: older ones end now.

    `begin` validates and hands to the engine; `call_of` finds the call in what it returns. Before
    an answer is sent whole, `Call.check` it. Leave out requests for no tokens (warm-ups).
    RequestError 499 when a newer one comes first; ClientGoneError when the client
    leaves.
    """
    turn: Turn = request.app.state.router.newest.turn(client_of(request))
    begun = await while_connected(request, turn.run(begin))
    turn.follow(call_of(begun))
    return begun, turn
