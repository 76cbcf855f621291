"""How long a client will wait, said in a header: no dialect has a field for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from ..errors import RequestError

T = TypeVar("T")

HEADER = "x-request-timeout"


def deadline_of(request: Request) -> float | None:
    """Return the seconds after which the engine may drop this request; None: not said.

    RequestError for anything but a positive number.
    """
    given = request.headers.get(HEADER)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise RequestError(
            f"{HEADER}: {given!r} is no positive number of seconds",
            code="invalid_value",
            param=HEADER,
        )
    return seconds


def timed_out() -> RequestError:
    """Return the 504 for a request that its deadline overtook; also a stream's last event."""
    return RequestError(
        "the request did not finish before its deadline; the engine has stopped working on it",
        status=504,
        type="timeout_error",
        code="request_timeout",
    )


async def within(request: Request, work: Awaitable[T]) -> T:
    """Await `work` for as long as the client will wait; RequestError 504 after that."""
    try:
        async with asyncio.timeout(deadline_of(request)):
            return await work
    except TimeoutError:
        raise timed_out() from None
