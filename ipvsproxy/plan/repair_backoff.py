"""Backoff for repairs: immediate repairs against a program that undoes them would only burn CPU on both sides.

No clock: the caller passes the time, in seconds. Repairs come at once as long as a bucket of tokens is not empty,
so that a single change by hand is repaired at once. While contested, each one waits twice as long as the one
before it, until there has been none for CALM_SECONDS more than that.
"""

import math

from ipvsproxy.base.timer import ExponentialWait

BURST, REFILL_SECONDS = 20, 2.0
FIRST_SECONDS = 0.25
CALM_SECONDS = 60.0


class RepairBackoff:
    """How long to wait with the next repair; `longest` is the wait that is never exceeded."""

    def __init__(self, longest: float) -> None:
        self._waits = ExponentialWait(FIRST_SECONDS, longest)
        self._tokens = float(BURST)
        self._wait = self._last = 0.0

    @property
    def is_contended(self) -> bool:
        """Whether others undo what is repaired."""
        return self._wait > 0

    def repaired(self, now: float) -> None:
        """Note a repair."""
        self.look(now)
        self._tokens = min(BURST, self._tokens + (now - self._last) / REFILL_SECONDS) - 1
        self._last = now
        if self.is_contended or self._tokens < 1:
            self._wait = self._waits.after(self._wait)

    def look(self, now: float) -> None:
        """Forget contention that is over."""
        if now >= self.calm_at:
            self._tokens, self._wait = float(BURST), 0.0

    @property
    def next(self) -> float:
        """The moment from which on the next repair may come."""
        return self._last + self._wait

    @property
    def calm_at(self) -> float:
        """When contention is over, unless there is another repair; infinity when there is none."""
        return self._last + CALM_SECONDS + self._wait if self.is_contended else math.inf
