"""When to ask a server again, and when to give up. Pure but for the sleep that is passed in."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from edgekit.errors import BusyError, EdgekitError, IoFailedError

ATTEMPTS: Final = 8
"""Failures in a row without one new byte; with the waits below about a minute and a half."""

FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
LONGEST_ASKED_S: Final = 300.0
"""A server that asks for more than this is not waited for: the person decides."""

STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class TryAgainError(Exception):
    """A failure that may pass. `wait_s` is what the server asked for, `status` its answer."""

    def __init__(self, why: str, *, status: int | None = None, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.status = status
        self.wait_s = wait_s


@dataclass(slots=True)
class Patience:
    """Counts failures of one piece of work. Progress starts the count again."""

    failures: int = 0
    first_wait_s: float = FIRST_WAIT_S

    def progress(self) -> None:
        self.failures = 0

    def wait_s(self, error: TryAgainError) -> float:
        """Return how long to wait before asking again.

        Raises BusyError (75) when a server stays overloaded or asks for more than
        LONGEST_ASKED_S, IoFailedError (74) when the network stays broken.
        """
        self.failures += 1
        if self.failures > ATTEMPTS or (error.wait_s or 0) > LONGEST_ASKED_S:
            raise given_up(error) from error
        backed_off = min(self.first_wait_s * 2.0 ** (self.failures - 1), LONGEST_WAIT_S)
        # Spread, so that several connections do not come back together.
        backed_off *= random.uniform(0.75, 1.25)  # noqa: S311
        return backed_off if error.wait_s is None else max(error.wait_s, 0.05)


def given_up(error: TryAgainError) -> EdgekitError:
    """Return the error that a person sees once there is no point in trying again now."""
    if error.status is not None:
        asked = f"; it asks to wait {error.wait_s:.0f} s" if error.wait_s else ""
        return BusyError(
            f"{error.why}{asked}",
            code="hub_busy",
            hint="run the same command later: what was fetched is kept",
        )
    return IoFailedError(
        error.why,
        code="network_failed",
        hint="check the network or the mirror, then run the same command again: what was "
        "fetched is kept",
    )


def parse_retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """Read `Retry-After`, seconds or a date (RFC 9110, 10.2.3); None when absent or unreadable."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())
