"""Between a change and the end of what it has sent away: what drains is looked at, and deleted at its end.

`plan.drain` decides when to look and what has ended; here connections are read from the kernel and destinations
deleted. Owned by the loop's thread.
"""

from collections.abc import Callable, Iterable, Mapping

import structlog

from ipvsproxy.base import messages
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.plan.diff import IpvsStep, Steps, Verb
from ipvsproxy.plan.drain import Drains, Ended
from ipvsproxy.plan.state import Dirty, Frontend, FrontendKey
from ipvsproxy.reconciler.stale_connections import Sweeper

LOGGED_AT_ONCE = 10

log = structlog.get_logger()


class Drainer:
    """Ends what drains."""

    def __init__(self, kernel: Kernel, sweeper: Sweeper, clock: Callable[[], float], report: Report) -> None:
        self._kernel = kernel
        self._sweeper = sweeper
        self._clock = clock
        self._report = report
        self._drains = Drains()

    @property
    def servers(self) -> int:
        """The number of servers with draining destinations."""
        return self._drains.servers

    @property
    def destinations(self) -> int:
        """The number of draining destinations."""
        return self._drains.destinations

    @property
    def next_look(self) -> float:
        """When `end` has something to do, infinity for never."""
        return self._drains.next_look

    def note(self, keys: Iterable[FrontendKey], frontends: Mapping[FrontendKey, Frontend]) -> None:
        """Take over what drains on some servers, after any change of them."""
        servers, now = self._kernel.shadow.servers, self._clock()
        for key in keys:
            self._drains.note(key, frontends.get(key), servers.get(key), now)

    def end(self, frontends: Mapping[FrontendKey, Frontend]) -> tuple[int, Dirty]:
        """Delete what has come to its end; return the number of changes, and what failed. Raises KernelError."""
        now, connections = self._clock(), self._kernel.connections
        keys = self._drains.due(now)
        ended = {key: found for key in keys if (found := self._drains.ended(key, connections(key), now))}
        if not ended:
            return 0, Dirty()
        steps = [
            IpvsStep(Verb.DEL_DEST, key, None, tuple(item.destination for item in found))
            for key, found in ended.items()
        ]
        failed = self._kernel.apply(Steps(removed=steps))
        self.note(keys, frontends)
        for key, found in ended.items():
            self._sweeper.cut(key, frozenset(item.destination for item in found if item.connections))
        self._log_ended([(key, item) for key in ended.keys() - failed.servers for item in ended[key]])
        return sum(step.size for step in steps), failed

    def _log_ended(self, ended: list[tuple[FrontendKey, Ended]]) -> None:
        forced = {f"{key} -> {item.destination}": item.connections for key, item in ended if item.connections}
        if len(ended) > len(forced):
            log.info("Removed drained destinations", count=len(ended) - len(forced))
        if forced:
            shown = dict(sorted(forced.items())[:LOGGED_AT_ONCE])
            log.info(messages.DRAIN_TIMEOUT, count=len(forced), connections=shown)
            self._report.drains_forced(len(forced))
