"""Counters of single Services and endpoints: which of them are shown, and how often the kernel is asked for them.

Two things are bounded. Cardinality: all Services, or the N with most traffic lately, are shown. Cost: all virtual
servers are read in one dump, destinations only of the Services shown; what was read is given again until a pause
has passed that is 20 times as long as the reading took, and no shorter than ten seconds.

A series is one kernel object, a virtual server or a destination of one: sums over those of a Service would fall
when one of them goes, which monitoring takes for a counter that began anew.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple, Protocol

import structlog

from ipvsproxy.config import ALL_SERVICES
from ipvsproxy.plan.records import Counters, DestinationRecord, ServerRecord
from ipvsproxy.plan.state import FrontendKey

SHORTEST_PAUSE = 10.0
PAUSE_FACTOR = 20
KEPT = 0.9
"""What of a Service's traffic counts at the next look: those shown change when traffic does, not at each look."""

log = structlog.get_logger()


class CounterReader(Protocol):
    """The kernel's counters, opened for one look."""

    def servers(self) -> Sequence[ServerRecord]:
        """Return all virtual servers."""

    def destinations(self, key: FrontendKey) -> Sequence[DestinationRecord]:
        """Return the destinations of a virtual server."""

    def close(self) -> None:
        """Close it."""


class TrafficSeries(NamedTuple):
    """What one kernel object has counted; `endpoint` is empty for a virtual server as a whole."""

    namespace: str
    service: str
    frontend: str
    endpoint: str
    counters: Counters
    active: int = 0
    inactive: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """Namespace, Service and frontend; the endpoint as well if there is one."""
        return (self.namespace, self.service, self.frontend, *([self.endpoint] if self.endpoint else []))


class Traffic:
    """Asked by any thread; reads one at a time. `holders` returns the Service of each frontend.

    `seconds` is how long the last reading took.
    """

    def __init__(
        self, limit: int, look: Callable[[], CounterReader], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.holders: Callable[[], Mapping[FrontendKey, str]] = dict
        self.seconds = 0.0
        self._limit = limit
        self._look = look
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0
        self._series: list[TrafficSeries] = []
        self._bytes: dict[FrontendKey, int] = {}
        self._recent: dict[str, float] = {}

    def series(self) -> list[TrafficSeries]:
        """Return the counters to show, as fresh as the pause between two looks allows."""
        with self._lock:
            began = self._clock()
            if began >= self._next:
                try:
                    self._series = self._read()
                except Exception as error:  # noqa: BLE001 - a scrape is answered, whatever the kernel refuses
                    log.warning("Could not read traffic counters, showing older ones", err=str(error))
                self.seconds = self._clock() - began
                self._next = began + self.seconds + max(SHORTEST_PAUSE, PAUSE_FACTOR * self.seconds)
            return self._series

    def _read(self) -> list[TrafficSeries]:
        names = self.holders()
        with closing(self._look()) as look:
            servers = [server for server in look.servers() if server.key in names]
            shown = self._chosen(servers, names)
            found: list[TrafficSeries] = []
            for server in servers:
                service = names[server.key]
                if service in shown:
                    found += _of_server(server, service, look.destinations(server.key))
            return found

    def _chosen(self, servers: Sequence[ServerRecord], names: Mapping[FrontendKey, str]) -> frozenset[str]:
        """Return the Services to show: those with most bytes lately, by name where that is equal."""
        if self._limit == ALL_SERVICES:
            return frozenset(names.values())
        seen, now = self._bytes, {s.key: s.counters.in_bytes + s.counters.out_bytes for s in servers}
        recent: Counter[str] = Counter()
        for key, count in now.items():
            recent[names[key]] += max(0, count - seen.get(key, 0))
        self._bytes = now
        self._recent = {
            service: KEPT * self._recent.get(service, 0.0) + count for service, count in recent.items()
        }
        order = sorted(self._recent, key=lambda service: (-self._recent[service], service))
        return frozenset(order[: self._limit])


def _of_server(
    server: ServerRecord, service: str, destinations: Sequence[DestinationRecord]
) -> list[TrafficSeries]:
    namespace, _, name = service.partition("/")
    frontend = str(server.key)
    active, inactive = (sum(getattr(real, state) for real in destinations) for state in ("active", "inactive"))
    whole = TrafficSeries(namespace, name, frontend, "", server.counters, active, inactive)
    each = (
        TrafficSeries(namespace, name, frontend, str(real.destination), real.counters, real.active, real.inactive)
        for real in destinations
    )
    return [whole, *each]
