"""Between a change and the end of what it has sent away: what drains is looked at, and deleted at its end.

`plan.drain` decides when to look and what has ended; here connections are read from the kernel and destinations
deleted. Owned by the loop's thread.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from ipvsproxy.base import messages
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.backoff import Backoff
from ipvsproxy.plan.diff import IpvsStep, Steps, Verb
from ipvsproxy.plan.drain import Drains, Ended
from ipvsproxy.plan.slices import Room, unit_cost
from ipvsproxy.plan.state import Dirty, Frontend, FrontendKey
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.stale_connections import Sweeper
from ipvsproxy.reconciler.wanted_state import WantedState

LOGGED_AT_ONCE = 10

log = structlog.get_logger()


class Drainer(Part):
    """Ends what drains. What is refused waits in `backoff`, to be compared with what is wanted."""

    def __init__(  # noqa: PLR0913 - all that a deletion touches
        self,
        kernel: Kernel,
        wanted: WantedState,
        sweeper: Sweeper,
        backoff: Backoff,
        room: Room,
        *,
        clock: Callable[[], float],
        report: Report,
    ) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._wanted = wanted
        self._sweeper = sweeper
        self._backoff = backoff
        self._clock = clock
        self._report = report
        self._drains = Drains()
        self._room = room
        # What has come to its end and is not deleted yet.
        self._ended: dict[FrontendKey, Sequence[Ended]] = {}

    @property
    def servers(self) -> int:
        """The number of servers with draining destinations."""
        return self._drains.servers

    @property
    def destinations(self) -> int:
        """The number of draining destinations."""
        return self._drains.destinations

    @property
    def next_due(self) -> float:
        """When a server is to be asked for connections, or the next part of what has ended is to be deleted."""
        return -math.inf if self._ended else self._drains.next_look

    @property
    def is_unfinished(self) -> bool:
        """Whether more has come to its end than there was room for."""
        return bool(self._ended)

    def note(self, keys: Iterable[FrontendKey], frontends: Mapping[FrontendKey, Frontend]) -> None:
        """Record what drains on some servers, after any change of them."""
        servers, now = self._kernel.shadow.servers, self._clock()
        for key in keys:
            self._drains.note(key, frontends.get(key), servers.get(key), now)

    def run(self, now: float) -> int:
        """Delete what has come to its end, one part of it; return the number of changes. Raises KernelError."""
        keys = self._drains.due(now)
        self._ended.update((key, found) for key in keys if (found := self._find_ended(key, now)))
        ended = self._next_part()
        if not ended:
            return 0
        steps = [
            IpvsStep(Verb.DEL_DEST, key, None, tuple(item.destination for item in found))
            for key, found in ended.items()
        ]
        began = self._clock()
        failed = self._kernel.apply(Steps(removed=steps))
        if self._ended:
            self._room.took(self._clock() - began)
        self.note({*keys, *ended}, self._wanted.frontends)
        for key, found in ended.items():
            self._sweeper.cut(key, frozenset(item.destination for item in found if item.connections))
        if failed:
            self._backoff.settle(Dirty(), failed, self._clock())
        self._log_ended([(key, item) for key in ended.keys() - failed.servers for item in ended[key]])
        return sum(step.size for step in steps)

    def _find_ended(self, key: FrontendKey, now: float) -> Sequence[Ended]:
        """Return what has come to its end on a server; one that cannot be read is looked at another time."""
        try:
            connections = self._kernel.connections(key)
        except KernelError as error:
            log.warning("Could not read the connections of a virtual server", frontend=str(key), err=str(error))
            return ()
        return self._drains.ended(key, connections, now)

    def _next_part(self) -> dict[FrontendKey, list[Ended]]:
        """Take what there is room for, without what is wanted again by now."""
        room, part = self._room.units, dict[FrontendKey, list[Ended]]()
        for key in list(self._ended):
            found, state = self._ended.pop(key), self._kernel.shadow.servers.get(key)
            units = unit_cost(len(state.destinations) if state else 0)
            count = max(1, int(room / units))
            if still := [item for item in found[:count] if self._drains.is_draining(key, item.destination)]:
                part[key] = still
            if len(found) > count:
                self._ended[key] = found[count:]
            room -= min(count, len(found)) * units
            if room <= 0:
                break
        return part

    def _log_ended(self, ended: list[tuple[FrontendKey, Ended]]) -> None:
        forced = {f"{key} -> {item.destination}": item.connections for key, item in ended if item.connections}
        if len(ended) > len(forced):
            log.info("Removed drained destinations", count=len(ended) - len(forced))
        if forced:
            shown = dict(sorted(forced.items())[:LOGGED_AT_ONCE])
            log.info(messages.DRAIN_TIMEOUT, count=len(forced), connections=shown)
            self._report.drains_forced(len(forced))
