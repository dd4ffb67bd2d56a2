"""How long to watch, and how long to wait before the next try, for all that follows an API server."""

import random
import time
from collections.abc import Callable

import msgspec
import tenacity


class Pace(msgspec.Struct, frozen=True):
    """How long to watch, how long to wait: seconds. The clock is for durations in logs and of watches.

    `list` is how long all pages of a list may take.
    """

    watch: tuple[int, int] = (300, 600)
    first_wait: float = 0.5
    longest_wait: float = 30.0
    longest_retry_after: float = 300.0
    list: float = 600.0
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = random.uniform
    randint: Callable[[int, int], int] = random.randint

    def pause(self, attempt: int) -> float:
        """Return seconds: exponential with jitter, so that the nodes of a cluster do not come back all at once."""
        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.attempt_number = attempt
        longest = tenacity.wait_exponential(multiplier=self.first_wait, max=self.longest_wait)(state)
        return self.uniform(longest / 2, longest)
