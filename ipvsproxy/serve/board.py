"""Where the loop's facts go: health, metrics, health-check listeners, events. The assembly of this room.

In: the calls of `Report`, from the loop's thread. Out: state that the server's threads read. No call blocks or
takes longer than microseconds, but for the rare ones after which listeners change.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ipvsproxy.exchange.report import EventNote, LookUps, Report, Severity, Subject, Sync, service_subject
from ipvsproxy.plan.local import LocalView
from ipvsproxy.plan.localhost import SocketAddress
from ipvsproxy.serve import pages
from ipvsproxy.serve.health import Health, responder
from ipvsproxy.serve.http import HttpServer, ListenAddress, Listener
from ipvsproxy.serve.metrics import Metrics
from ipvsproxy.serve.refusals import Refusals
from ipvsproxy.serve.services import GROUP, ServicePorts
from ipvsproxy.serve.traffic import Traffic

if TYPE_CHECKING:
    from ipvsproxy.serve.relay import Relay

FAMILIES = (4, 6)
MAX_TRIGGERS = 10_000


class Board(Report):
    """The report that everybody can read. `sync_period` in seconds; `notify` takes what is worth an event."""

    def __init__(
        self, sync_period: float, notify: Callable[[EventNote], None], families: Iterable[int] = FAMILIES
    ) -> None:
        families = tuple(families)
        self.metrics = Metrics(families)
        self.health = Health(sync_period, families)
        self.server = HttpServer()
        self._notify = notify
        self._ports = ServicePorts(lambda: self.health.healthy, notify)
        self._lacking: dict[str, frozenset[tuple[str, int]]] = {}
        self._lacking_counts: Counter[tuple[str, int]] = Counter()
        self._started = time.time()
        self._triggers: list[float] = []
        self._relay: Relay | None = None
        self._traffic: Traffic | None = None
        self._refusals: Refusals | None = None
        self._look_ups = LookUps()

    def show_traffic(self, traffic: Traffic) -> None:
        """Have counters of single Services and endpoints among the metrics."""
        self._traffic = traffic
        self.metrics.show_traffic(traffic)

    def show_refusals(self, refusals: Refusals) -> None:
        """Have connections that were refused since a Service is another tenant's among the metrics."""
        self._refusals = refusals
        self.metrics.show_refusals(refusals)

    def look_ups(self, found: LookUps) -> None:
        """Keep them for the page and the counters that have names."""
        self._look_ups = found
        if self._traffic is not None:
            self._traffic.holders = found.holders
        if self._refusals is not None:
            self._refusals.names = found.tenants

    def received(self, kind: str, objects: int, triggered: float) -> None:
        """Count, and keep the trigger until the change is programmed; older ones than the process do not count."""
        self.metrics.received(kind, objects)
        if triggered >= self._started and len(self._triggers) < MAX_TRIGGERS:
            self._triggers.append(triggered)

    def node(self, *, eligible: bool, listen: Mapping[int, tuple[bytes, ...]], reason: str = "") -> None:
        """Pass on."""
        self.health.node(eligible=eligible, reason=reason)
        self._ports.listen_on(listen)

    def lacking_rights(self, kinds: Sequence[str]) -> None:
        """Pass on."""
        self.health.lacking_rights(kinds)

    def local(self, service: str, view: LocalView | None) -> None:
        """Keep the Services with a Local policy, and count those without a usable endpoint here."""
        self._ports.set(service, view)
        old, new = self._lacking.get(service, frozenset()), view.lacking if view else frozenset()
        if old == new:
            return
        self._lacking_counts.subtract(old)
        self._lacking_counts.update(new)
        self._lacking.pop(service, None)
        if new:
            self._lacking[service] = new

    def localhost_ports(self, service: str, ports: Mapping[SocketAddress, SocketAddress]) -> None:
        """Have the relay listen there."""
        if self._relay is None:
            # Imported here, since it brings asyncio, and most proxies have no use for it.
            from ipvsproxy.serve.relay import Relay

            self._relay = Relay(self._localhost_refused)
        self._relay.serve(service, {ListenAddress(*here): ListenAddress(*there) for here, there in ports.items()})

    def _localhost_refused(self, service: str, reason: str) -> None:
        subject = service_subject(service, "")
        self._notify(EventNote(subject, Severity.WARNING, "FailedToListenOnLocalhost", "Listen", reason))

    def queued(self) -> None:
        """Pass on."""
        self.health.queued()
        self.metrics.queued()

    def synced(self, sync: Sync) -> None:
        """Pass on, and open or close the listeners of Services whose ports have changed."""
        triggers: list[float] = []
        if not sync.behind and not sync.backlog:
            triggers, self._triggers = self._triggers, []
        if sync.backlog:
            self.health.progressed()
        else:
            self.health.succeeded(sync.behind)
            self.health.queued(sync.behind)
        self.metrics.synced(sync, triggers)
        self.metrics.lacking(self._lacking_counts)
        listeners = self._ports.take_listeners()
        if listeners is not None:
            self.metrics.health_ports(len(self._ports))
            self.server.set_listeners(GROUP, listeners)

    def progressed(self) -> None:
        """Pass on."""
        self.health.progressed()

    def failed(self) -> None:
        """Count; what could not be done waits from now on, if it did not before."""
        self.health.queued()
        self.metrics.failed()

    def refused(self, service: Subject, reason: str) -> None:
        """Count, and make it an event of the Service."""
        self.metrics.refused()
        self._notify(EventNote(service, Severity.WARNING, "FailedToProgramService", "ProgramService", reason))

    def drains_forced(self, destinations: int) -> None:
        """Count."""
        self.metrics.drains_forced(destinations)

    def swept(self, family: int, seconds: float, deleted: int) -> None:
        """Pass on."""
        self.metrics.swept(family, seconds, deleted)

    def rival(self, node: str, reason: str) -> None:
        """Make it an event of the Node."""
        if reason:
            subject = Subject("Node", "", node, node)
            self._notify(EventNote(subject, Severity.WARNING, "OtherProxyRunning", "ProgramServices", reason))

    def contested(self, node: str, reason: str) -> None:
        """Set the metric, and make it an event of the Node."""
        self.metrics.contested(bool(reason))
        if reason:
            subject = Subject("Node", "", node, node)
            self._notify(EventNote(subject, Severity.WARNING, "KernelStateContested", "RepairKernelState", reason))

    def foreign_server(self, node: str, note: str) -> None:
        """Make it an event of the Node."""
        subject = Subject("Node", "", node, node)
        self._notify(EventNote(subject, Severity.WARNING, "ForeignVirtualServer", "RepairKernelState", note))

    def repaired(self, objects: int) -> None:
        """Count."""
        self.metrics.repaired(objects)

    # The two servers

    def health_listener(self, address: ListenAddress) -> Listener:
        """Return the health server."""
        return Listener("healthz", address, responder(self.health, self.metrics.probed))

    def metrics_listener(self, address: ListenAddress, book: pages.Pages) -> Listener:
        """Return the metrics server with the pages of a book."""
        book.add("/metrics", pages.metrics(self.metrics.exposition))
        book.add("/metrics/slis", pages.slis)
        book.add("/frontends", pages.frontends(lambda: self._look_ups))
        return Listener("metrics", address, book.respond)
