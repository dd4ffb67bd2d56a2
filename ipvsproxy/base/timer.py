"""When to try again."""

from collections.abc import Callable


class Timer:
    """A point in time that each `later` moves twice as far away, between a first and a longest wait in seconds."""

    def __init__(self, clock: Callable[[], float], first: float, longest: float) -> None:
        self.at = 0.0
        self._clock = clock
        self._first = self._wait = first
        self._longest = longest

    def due(self) -> bool:
        """Whether the time has come."""
        return self._clock() >= self.at

    def later(self) -> None:
        """Wait longer than the last time."""
        self.at = self._clock() + self._wait
        self._wait = min(self._longest, self._wait * 2)

    def now(self) -> None:
        """Become due at once, whatever was decided before."""
        self.at = self._clock()

    def reset(self) -> None:
        """Start with short waits again."""
        self._wait = self._first
        self.at = self._clock()
