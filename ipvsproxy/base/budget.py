"""Limits on log lines and Events for each namespace, so that the objects of one do not hide those of others.

A namespace has a budget of its own, and what is about the node, which is in no namespace, has one, too.
"""

from collections.abc import Callable
from typing import NamedTuple

FEWEST_FORGOTTEN = 256


class Rate(NamedTuple):
    """So many at once, and then one after so many seconds each."""

    burst: int
    seconds: float


LINES = Rate(30, 10.0)
"""Log lines about the objects of one namespace."""
LOGGED_AT_ONCE = 10
"""Objects of one event that are logged one by one; of the others the count is."""


class Bucket:
    """What is left of one budget, and how often nothing was."""

    def __init__(self, rate: Rate, now: float) -> None:
        self.withheld = 0
        self._rate = rate
        self._tokens = float(rate.burst)
        self._filled = now

    def has(self, now: float) -> bool:
        """Whether there is anything left."""
        self._tokens = min(self._rate.burst, self._tokens + (now - self._filled) / self._rate.seconds)
        self._filled = now
        return self._tokens >= 1

    def spend(self) -> None:
        """Take one."""
        self._tokens -= 1

    def is_untouched(self, now: float) -> bool:
        """Whether it is as if nothing had ever been taken."""
        return not self.withheld and self.has(now) and self._tokens >= self._rate.burst


class Budget:
    """Budgets of namespaces, of all of them together if `together` is given, and of the node ('')."""

    def __init__(
        self, clock: Callable[[], float], each: Rate, node: Rate | None = None, together: Rate | None = None
    ) -> None:
        self._clock = clock
        self._each = each
        now = clock()
        self._together = Bucket(together, now) if together else None
        self._buckets: dict[str, Bucket] = {"": Bucket(node, now)} if node else {}
        self._kept = FEWEST_FORGOTTEN

    def take(self, namespace: str) -> bool:
        """Whether a line about a namespace may be written; those that may not are counted."""
        now = self._clock()
        bucket = self._buckets.get(namespace)
        if bucket is None:
            self._forget(now)
            bucket = self._buckets[namespace] = Bucket(self._each, now)
        shared = self._together if namespace else None
        if not bucket.has(now) or (shared is not None and not shared.has(now)):
            bucket.withheld += 1
            return False
        bucket.spend()
        if shared is not None:
            shared.spend()
        return True

    def take_withheld(self, namespace: str) -> int:
        """Return how many lines about a namespace were withheld since the last call."""
        bucket = self._buckets.get(namespace)
        if bucket is None:
            return 0
        count, bucket.withheld = bucket.withheld, 0
        return count

    def take_all_withheld(self) -> dict[str, int]:
        """Return the same for all namespaces with withheld lines."""
        names = [name for name, bucket in self._buckets.items() if bucket.withheld]
        return {name: self.take_withheld(name) for name in names}

    def _forget(self, now: float) -> None:
        """Drop budgets of which nothing is missing, when there have come to be twice as many."""
        if len(self._buckets) < self._kept:
            return
        self._buckets = {name: b for name, b in self._buckets.items() if not name or not b.is_untouched(now)}
        self._kept = max(FEWEST_FORGOTTEN, 2 * len(self._buckets))


def namespace_of(key: str) -> str:
    """Return the namespace of `namespace/name`, nothing for an object without one."""
    namespace, slash, _ = key.partition("/")
    return namespace if slash else ""
