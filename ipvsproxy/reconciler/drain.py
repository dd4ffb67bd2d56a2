"""Between a change and the end of what it has sent away: what drains is looked at, and deleted at its end.

`plan.drain` decides when to look and what has ended; here connections are read from the kernel and destinations
deleted. Owned by the loop's thread.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.budget import LOGGED_AT_ONCE
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.large_servers import PIECE
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.backoff import Backoff
from ipvsproxy.plan.diff import IpvsStep, Steps, Verb
from ipvsproxy.plan.drain import Drains, Ended
from ipvsproxy.plan.short_drains import ShortDrains
from ipvsproxy.plan.slices import Room, unit_cost
from ipvsproxy.plan.state import SHORT_PATH, Destination, Dirty, Frontend, FrontendKey
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.stale_connections import PAUSE_SECONDS, Sweeper
from ipvsproxy.reconciler.wanted_state import WantedState

Connections = Iterator[dict[Destination, int] | None]

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
        self._short = ShortDrains()
        self._room = room
        # What has come to its end and is not deleted yet, and when that was found.
        self._ended: dict[FrontendKey, tuple[float, Sequence[Ended]]] = {}
        # Large servers whose connections are being read, a piece at a time.
        self._reading: dict[FrontendKey, Connections] = {}

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
        if self._ended or self._reading:
            return -math.inf
        return min(self._drains.next_look, self._short.next_due)

    @property
    def is_unfinished(self) -> bool:
        """Whether more has come to its end than there was room for, or more is to be read."""
        return bool(self._ended or self._reading)

    def note(self, keys: Iterable[FrontendKey], frontends: Mapping[FrontendKey, Frontend]) -> None:
        """Record what drains on some servers, after any change of them."""
        servers, now = self._kernel.shadow.servers, self._clock()
        for key in keys:
            frontend = frontends.get(key)
            self._drains.note(key, frontend, servers.get(key), now)
            self._short.note(key, frontend, now)

    def run(self, now: float) -> int:
        """Delete what has come to its end, one part of it; return the number of changes. Raises KernelError."""
        self._end_on_short_path(now)
        keys = self._drains.due(now)
        for key in keys:
            # What is being read goes on: begun anew each time, a reading that takes longer would never end.
            if key not in self._reading:
                self._look(key, self._read(key), now)
        if self._reading and not keys:
            key = next(iter(self._reading))
            self._look(key, self._reading.pop(key), now)
        ended = self._next_part()
        if not ended:
            return 0
        steps = [
            IpvsStep(Verb.DEL_DEST, key, None, tuple(item.destination for item in found))
            for key, found in ended.items()
        ]
        began = self._clock()
        failed = self._kernel.apply(Steps(removed=steps))
        failed.update(self._kernel.apply(Steps(removed=list(self._empty(ended.keys() - failed.servers)))))
        if self._ended:
            self._room.took(self._clock() - began)
        self.note({*keys, *ended}, self._wanted.frontends)
        for key, found in ended.items():
            self._sweeper.cut(key, frozenset(item.destination for item in found if item.connections))
        if failed:
            self._backoff.settle(Dirty(), failed, self._clock())
        self._log_ended([(key, item) for key in ended.keys() - failed.servers for item in ended[key]])
        return sum(step.size for step in steps)

    def _end_on_short_path(self, now: float) -> None:
        """Cut connections on the short path that have come to their deadline; what fails is tried again later."""
        for sweep in self._short.sweeps(now):
            if not self._sweeper.carry_out(sweep):
                self._short.later(sweep.rules, now + PAUSE_SECONDS)

    def _empty(self, keys: Iterable[FrontendKey]) -> Iterator[IpvsStep]:
        """Yield the ends of servers that were kept for what drained only: of frontends on the short path."""
        frontends, servers = self._wanted.frontends, self._kernel.shadow.servers
        for key in keys:
            frontend, state = frontends.get(key), servers.get(key)
            if frontend and state and frontend.path is SHORT_PATH and not state.destinations:
                yield IpvsStep(Verb.DEL_SERVICE, key)

    def _look(self, key: FrontendKey, reading: Connections, now: float) -> None:
        """Read a server, or a piece of it, and note what has come to its end.

        One that cannot be read is looked at another time.
        """
        try:
            connections = next(reading)
        except KernelError as error:
            log.warning("Could not read the connections of a virtual server", frontend=str(key), err=str(error))
            return
        if connections is None:
            self._reading[key] = reading
        elif found := self._drains.ended(key, connections, now):
            self._ended[key] = self._clock(), found

    def _read(self, key: FrontendKey) -> Connections:
        """Yield the connections of a server; of a large one None after each piece, then those of what drains."""
        if not self._kernel.is_large(key):
            yield self._kernel.connections(key)
            return
        began, found = self._clock(), dict[Destination, int]()
        listing = self._kernel.each_connections(key)
        while piece := list(islice(listing, PIECE)):
            found.update(item for item in piece if self._drains.is_draining(key, item[0]))
            yield None
        # One that was wanted again in between may have got connections.
        yield {d: count for d, count in found.items() if self._drains.is_draining(key, d, began)}

    def _next_part(self) -> dict[FrontendKey, list[Ended]]:
        """Take what fits, but nothing that is wanted again, or was in between: it may have connections."""
        room, part = self._room.units, dict[FrontendKey, list[Ended]]()
        for key in list(self._ended):
            (seen, found), state = self._ended.pop(key), self._kernel.shadow.servers.get(key)
            units = unit_cost(len(state.destinations) if state else 0)
            count = max(1, int(room / units))
            now = found[:count]
            if still := [item for item in now if self._drains.is_draining(key, item.destination, seen)]:
                part[key] = still
            if len(found) > count:
                self._ended[key] = seen, found[count:]
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
