"""Telling damage from a fight: who repairs at once, for ever, against another program only burns both CPUs.

Pure: the time comes in, in seconds. The first BURST repairs in a row come at once, each further one waits twice as
long as the one before it; after CALM_SECONDS without one, all is forgotten.
"""

BURST = 8
FIRST_SECONDS = 0.25
CALM_SECONDS = 60.0


class Patience:
    """How long to wait with the next repair; `longest` is the wait that is never exceeded."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._repairs = 0
        self._last = 0.0

    @property
    def is_fight(self) -> bool:
        """Whether others undo what is repaired."""
        return self._repairs > BURST

    def repaired(self, now: float) -> None:
        """Note a repair."""
        self.look(now)
        self._repairs += 1
        self._last = now

    def look(self, now: float) -> None:
        """Forget what is long ago."""
        if self._repairs and now - self._last > CALM_SECONDS + self._wait:
            self._repairs = 0

    @property
    def next(self) -> float:
        """The moment from which on the next repair may come."""
        return self._last + self._wait if self._repairs else 0.0

    @property
    def _wait(self) -> float:
        further = self._repairs - BURST
        return min(self._longest, FIRST_SECONDS * 2.0 ** min(further, 30)) if further >= 0 else 0.0
