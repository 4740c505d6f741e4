"""When to dial a server again after dials that failed: exponential backoff with full jitter.

The state of one server, without a clock of its own: the caller passes the time in. Callers wait
for a dial within their deadlines. Once :data:`FAIL_FAST_AFTER` dials in a row have failed they do
not wait any more: they get the last failure at once, but for the one caller per pause whose dial
is the probe. So a server that swallows packets does not eat every thread of the application.

Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pevensie.errors import RedisError

FIRST_PAUSE: Final = 0.05
"""Seconds. Short: most failures are a restart that is over already."""
LONGEST_PAUSE: Final = 1.0
"""Seconds. So that a server which comes back is found within two seconds, at the cost of a few
dials per second and process while it is away."""
FAIL_FAST_AFTER: Final = 3
"""Failed dials in a row, after which callers no longer wait."""


class Backoff:
    """How the last dials to one server went, and when the next may start."""

    __slots__ = ("_failed_at", "_looked_up_at", "_random", "failure", "failures", "next_dial")

    failures: int
    """Failed dials since the last that succeeded."""
    failure: RedisError | None
    """How the last one failed."""
    next_dial: float
    """When the next may start, on the caller's clock."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._looked_up_at = float("-inf")
        self.succeeded()

    def __repr__(self) -> str:
        return f"<Backoff failures={self.failures} next_dial={self.next_dial:.3f}>"

    def succeeded(self) -> None:
        """A connection was opened."""
        self.failures = 0
        self.failure = None
        self.next_dial = 0.0
        self._failed_at = float("-inf")

    def failed(self, failure: RedisError, started: float, now: float) -> None:
        """A dial that *started* then ended in *failure* at *now*.

        Dials that were under way together are one failure: they tell the same.
        """
        self.failure = failure
        if started < self._failed_at:
            return
        self._failed_at = now
        self.failures += 1
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.failures - 1, 10))
        self.next_dial = now + longest * self._random()

    def may_look_up(self, now: float) -> bool:
        """Whether a server that answers READONLY is to be dialled, and its name looked up, again.

        Once per :data:`LONGEST_PAUSE`: it may be a replica for good, and dialling it succeeds.
        """
        if now - self._looked_up_at < LONGEST_PAUSE:
            return False
        self._looked_up_at = now
        return True

    def fails_fast(self, now: float) -> bool:
        """Whether a caller that needs a new connection is to be refused at once."""
        return self.failures >= FAIL_FAST_AFTER and now < self.next_dial


def pause_after_refusal(attempt: int, random: Callable[[], float]) -> float:
    """Seconds to wait before a command that the server refused is sent again."""
    return FIRST_PAUSE * attempt * (0.5 + random() / 2)
