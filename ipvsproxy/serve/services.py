"""The healthCheckNodePort listeners: one for each such Service, family and address (contract 5.2).

In: a `LocalView` for each Service that changed, and where to listen. Out: the listeners that there should be.
A load balancer asks them which nodes have endpoints of a Service with externalTrafficPolicy Local.
"""

import json
from collections.abc import Callable, Iterator, Mapping

from ipvsproxy.base.errors import plain
from ipvsproxy.exchange.report import EventNote, Severity, service_subject
from ipvsproxy.plan.local import LocalView
from ipvsproxy.serve.health import HEADERS, JSON
from ipvsproxy.serve.http import HttpAnswer, ListenAddress, Listener, Request, Respond

GROUP = "healthCheckNodePort"

Notify = Callable[[EventNote], None]


class ServicePorts:
    """Services with a health-check port.

    Belongs to the loop's thread, but for answers: they look up one frozen view.
    """

    def __init__(self, healthy: Callable[[], bool], notify: Notify) -> None:
        self._healthy = healthy
        self._notify = notify
        self._views: dict[str, LocalView] = {}
        self._addresses: Mapping[int, tuple[bytes, ...]] = {}
        self._stale = False

    def set(self, service: str, view: LocalView | None) -> None:
        """Record a Service; one without a port is forgotten."""
        if view is None or not view.health_check_port:
            if self._views.pop(service, None) is not None:
                self._stale = True
            return
        old = self._views.get(service)
        self._views[service] = view
        self._stale |= old is None or _shape(old) != _shape(view)

    def listen_on(self, addresses: Mapping[int, tuple[bytes, ...]]) -> None:
        """Record where to listen, by family."""
        self._stale |= addresses != self._addresses
        self._addresses = addresses

    def take_listeners(self) -> list[Listener] | None:
        """Return all listeners there should be, None if they are the same as the last time."""
        if not self._stale:
            return None
        self._stale = False
        return list(self._listeners())

    def __len__(self) -> int:
        return len(self._views)

    def _listeners(self) -> Iterator[Listener]:
        taken: dict[int, str] = {}
        for service, view in sorted(self._views.items()):
            port = view.health_check_port
            holder = taken.setdefault(port, service)
            if holder != service:
                self._refuse(view, f"healthCheckNodePort {port} is in use by {holder}")
                continue
            for number in view.endpoints:
                for address in self._addresses.get(number, ()):
                    yield self._listener(view, number, ListenAddress(address, port))

    def _listener(self, view: LocalView, number: int, address: ListenAddress) -> Listener:
        def failed(address: ListenAddress, error: OSError) -> None:
            self._refuse(view, f"node failed to start healthcheck on {address}: {plain(error)}")

        return Listener(f"{GROUP}/{view.service}", address, self._respond(view.service, number), failed)

    def _refuse(self, view: LocalView, note: str) -> None:
        subject = service_subject(view.service, view.uid)
        self._notify(EventNote(subject, Severity.WARNING, "FailedToStartServiceHealthcheck", "Listen", note))

    def _respond(self, service: str, number: int) -> Respond:
        def respond(_: Request) -> HttpAnswer:
            view = self._views.get(service)
            count = view.endpoints.get(number, 0) if view else 0
            return answer(service, count, healthy=self._healthy())

        return respond


def answer(service: str, count: int, *, healthy: bool) -> HttpAnswer:
    """Return the answer to a load balancer: 200 if there are endpoints here and the proxy keeps up."""
    namespace, name = service.split("/")
    body = {
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }
    headers = {**HEADERS, "X-Load-Balancing-Endpoint-Weight": str(count)}
    return HttpAnswer(200 if count and healthy else 503, json.dumps(body, indent="\t").encode(), JSON, headers)


def _shape(view: LocalView) -> tuple[int, tuple[int, ...]]:
    """What the listeners of a view depend on; the number of endpoints is looked up when asked."""
    return view.health_check_port, tuple(view.endpoints)
