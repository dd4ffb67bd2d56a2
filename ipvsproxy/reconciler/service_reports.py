"""What is logged and reported about Services: what one does not get, and where its health checks are answered.

Each fact once, when it begins, and no more lines about a namespace than its budget has. Belongs to the loop's
thread.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.budget import LINES, Budget, namespace_of
from ipvsproxy.exchange.report import Report, service_subject
from ipvsproxy.plan.local import LocalView
from ipvsproxy.plan.localhost import SocketAddress
from ipvsproxy.plan.model import EndpointSlice, Service
from ipvsproxy.plan.safety import AddressRefusal
from ipvsproxy.plan.state import FrontendKey

MOST_LISTED = 5
"""Of the addresses or frontends that a Service does not get, those that are named one by one."""

log = structlog.get_logger()


class ServiceReports:
    """What has been reported about each Service. `services` are all there are."""

    def __init__(self, report: Report, clock: Callable[[], float], services: Mapping[str, Service]) -> None:
        self._report = report
        self._services = services
        self._lines = Budget(clock, LINES)
        self._local: set[str] = set()
        self._refused: dict[str, tuple[AddressRefusal, ...]] = {}
        self._complaints: dict[str, tuple[str, ...]] = {}
        self._misused: dict[str, frozenset[str]] = {}
        self._localhost: dict[str, Mapping[SocketAddress, SocketAddress]] = {}
        self._node_lists_are_known = False

    @property
    def limited(self) -> int:
        """The number of Services that are served in part."""
        return len(self._complaints)

    def of(self, key: str) -> tuple[str, ...]:
        """Return what a Service does not get of what it, or its slices, ask for."""
        return (*self._complaints.get(key, ()), *sorted(self._misused.get(key, ())))

    def forget(self, key: str) -> None:
        """A Service has gone."""
        self._refused.pop(key, None)
        self._complaints.pop(key, None)
        self._misused.pop(key, None)
        self.local(key, None)
        self.localhost_ports(key, {})

    def localhost_ports(self, key: str, ports: Mapping[SocketAddress, SocketAddress]) -> None:
        """Report where a Service answers on loopback addresses, when that is something else than before."""
        if ports == self._localhost.get(key, {}):
            return
        self._localhost.pop(key, None)
        if ports:
            self._localhost[key] = ports
        self._report.localhost_ports(key, ports)

    def addresses(self, key: str, refusals: Sequence[AddressRefusal]) -> None:
        """Report once which addresses a Service does not get: one line and one Event, however many there are."""
        if not refusals and key not in self._refused:
            return
        found = tuple(refusal for refusal in refusals if not refusal.quiet)
        if found == self._refused.get(key, ()):
            return
        self._refused[key] = found
        if not found:
            del self._refused[key]
            return
        self._list(key, messages.ADDRESSES_REFUSED, "addresses", list(map(str, found)))

    def nodes_listed(self, services: int) -> None:
        """Log once for all Services that load balancers list nodes, each of which serves its own addresses."""
        if services and not self._node_lists_are_known:
            self._node_lists_are_known = True
            log.info(messages.NODE_ADDRESSES_IGNORED, services=services)

    def complaints(self, key: str, complaints: Sequence[str]) -> None:
        """Report once what a Service does not get since it asks for too much."""
        if not complaints and key not in self._complaints:
            return
        before = frozenset(self._complaints.pop(key, ()))
        if complaints:
            self._complaints[key] = tuple(dict.fromkeys(complaints))  # both families may have one
        for complaint in self._complaints.get(key, ()):
            if complaint not in before:
                self._warn(key, messages.SERVED_IN_PART, reason=complaint)
                self.refused(key, complaint)

    def misused(self, key: str, complaints: Sequence[str], slices: Iterable[EndpointSlice]) -> None:
        """Report annotations that cannot be used in one Event; the log line is that of their object."""
        all_complaints = [*complaints]
        for piece in slices:
            all_complaints += piece.misused
        if not (all_complaints or key in self._misused):
            return
        found = frozenset(all_complaints)
        before = self._misused.pop(key, frozenset())
        if found:
            self._misused[key] = found
        if new := sorted(found - before):
            self.refused(key, "; ".join(new))

    def conflicts(self, found: Mapping[str, Mapping[FrontendKey, str]]) -> None:
        """Report what Services have begun to claim in vain, with the Services that hold it."""
        for key, held in found.items():
            texts = [f"{frontend} is held by the Service {holder}" for frontend, holder in sorted(held.items())]
            self._list(key, "Found frontends of a Service taken by other Services", "frontends", texts)

    def local(self, key: str, view: LocalView | None) -> None:
        """Report the local endpoints of a Service with a Local policy, None when it has none."""
        if view is not None:
            self._local.add(key)
        elif key in self._local:
            self._local.remove(key)
        else:
            return
        self._report.local(key, view)

    def affected(self, reasons: Mapping[str, str]) -> None:
        """Report the Services that something has failed for in the kernel."""
        for key, reason in reasons.items():
            self.refused(key, reason)

    def refused(self, key: str, reason: str) -> None:
        """Report that a Service could not be programmed."""
        service = self._services.get(key)
        self._report.refused(service_subject(key, service.uid if service else ""), reason)

    def withheld(self) -> None:
        """Sum up the lines that were left out."""
        self._sum_up(self._lines.take_all_withheld())

    def _list(self, key: str, message: str, what: str, texts: Sequence[str]) -> None:
        """Report what a Service does not get in one line and one Event: the first few, and how many there are."""
        shown, more = list(texts[:MOST_LISTED]), len(texts) - MOST_LISTED
        self._warn(key, message, count=len(texts), **{what: shown})
        self.refused(key, "; ".join(shown + ([f"and {more} more"] if more > 0 else [])))

    def _warn(self, key: str, message: str, **more: object) -> None:
        namespace = namespace_of(key)
        if self._lines.take(namespace):
            log.warning(message, service=key, **more)
            self._sum_up({namespace: self._lines.take_withheld(namespace)})

    def _sum_up(self, counts: Mapping[str, int]) -> None:
        for namespace, count in counts.items():
            if count:
                log.warning(messages.SERVICE_LINES_SUPPRESSED, namespace=namespace, count=count)
