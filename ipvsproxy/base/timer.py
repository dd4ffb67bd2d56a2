"""When to try again: the one exponential backoff of the program. It decides how long; who waits is the caller."""

import math
from collections.abc import Callable
from typing import NamedTuple

MOST_DOUBLINGS = 64
"""Enough for any two waits, and no number of attempts is too large for a float."""


class ExponentialWait(NamedTuple):
    """Waits in seconds: the first one, then each twice as long as the one before it, none above the longest."""

    first: float
    longest: float

    def seconds(self, attempt: int) -> float:
        """Return the wait after the failed attempt with this number, counted from 1."""
        return min(self.longest, self.first * 2.0 ** min(attempt - 1, MOST_DOUBLINGS))

    def after(self, seconds: float) -> float:
        """Return the wait that follows one of so many seconds, 0 if there was none."""
        return min(self.longest, max(self.first, seconds * 2))


class Timer:
    """A point in time that each `later` moves twice as far away, between a first and a longest wait in seconds."""

    def __init__(self, clock: Callable[[], float], first: float, longest: float) -> None:
        self.at = -math.inf
        self._clock = clock
        self._waits = ExponentialWait(first, longest)
        self._wait = 0.0

    def later(self) -> None:
        """Wait longer than the last time."""
        self._wait = self._waits.after(self._wait)
        self.at = self._clock() + self._wait

    def now(self) -> None:
        """Become due at once, whatever was decided before."""
        self.at = -math.inf

    def reset(self) -> None:
        """Start with short waits again."""
        self._wait = 0.0
        self.at = -math.inf
