"""How long to watch, and how long to wait before the next try, for all that asks an API server."""

import random
import time
from collections.abc import Callable

import msgspec
import tenacity

from ipvsproxy.base.timer import ExponentialWait
from ipvsproxy.kube.api import RequestFailed


class Pace(msgspec.Struct, frozen=True):
    """How long to watch, how long to wait: seconds. The clock is for durations in logs and of watches.

    `list` is how long all pages of a list may take.
    """

    watch: tuple[int, int] = (300, 600)
    wait: ExponentialWait = ExponentialWait(0.5, 30.0)
    longest_retry_after: float = 300.0
    list: float = 600.0
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = random.uniform
    randint: Callable[[int, int], int] = random.randint

    def pause(self, attempt: int, retry_after: float = 0.0) -> float:
        """Return seconds: exponential with jitter, so that the nodes of a cluster do not come back all at once.

        `retry_after` is what the server asked for; it counts, up to `longest_retry_after`.
        """
        longest = self.wait.seconds(attempt)
        return max(self.uniform(longest / 2, longest), min(retry_after, self.longest_retry_after))

    def after(self, state: tenacity.RetryCallState) -> float:
        """Return the pause after a failed request: a wait strategy for `tenacity.Retrying`."""
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.retry_after if isinstance(failure, RequestFailed) else 0.0
        return self.pause(state.attempt_number, asked)
