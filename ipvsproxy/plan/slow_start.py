"""Endpoints that have just come and get their whole weight step by step: which ones, and when the next step is.

An endpoint is new when it becomes ready, but not where nothing is known of how long the others have been there:
at a cold start, or when a Service begins to ask for this. The weights in the kernel are the memory that outlives a
restart. Deterministic: times are seconds of one clock that never goes back.
"""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ipvsproxy.base.address import family
from ipvsproxy.plan.balance import STEPS, balance_of
from ipvsproxy.plan.model import Endpoint, EndpointSlice, Service
from ipvsproxy.plan.state import FrontendKey, ServerState

LONG_AGO = -math.inf


class SlowStarts:
    """Since when each endpoint is there, of the Services that ask for a slow start."""

    def __init__(self) -> None:
        self._since: dict[str, dict[bytes, float]] = {}
        self._next: dict[str, float] = {}
        # A Service with another time by now is dropped from its old place.
        self._agenda: list[tuple[float, str]] = []
        self._present: Mapping[FrontendKey, ServerState] | None = None

    def __bool__(self) -> bool:
        return bool(self._since)

    def remember(self, present: Mapping[FrontendKey, ServerState] | None) -> None:
        """Take the ages of endpoints from what the kernel has, as long as that is given."""
        self._present = present

    def forget(self, service: str) -> None:
        """A Service has gone, or asks for it no more."""
        if self._since.pop(service, None) is not None:
            self._next.pop(service, None)

    @property
    def next(self) -> float:
        """When `due` has something to return, infinity for never."""
        while self._agenda and self._next.get(self._agenda[0][1]) != self._agenda[0][0]:
            heapq.heappop(self._agenda)
        return self._agenda[0][0] if self._agenda else math.inf

    def due(self, now: float) -> Iterator[str]:
        """Yield the Services that are to be planned again, since an endpoint of theirs gets more."""
        while self.next <= now:
            service = heapq.heappop(self._agenda)[1]
            del self._next[service]
            yield service

    def steps(self, service: Service, slices: Sequence[EndpointSlice], zone: str, now: float) -> dict[bytes, int]:
        """Return how many `STEPS`-ths of its weight each endpoint has that has not all of it."""
        ready = {found.address: found for piece in slices for found in piece.endpoints if found.ready}
        known = self._since.get(service.key)
        if known is None:
            since = self._at_first(service, slices, ready.values(), zone, now)
        else:
            since = {address: known.get(address, now) for address in ready}
        self._since[service.key] = since
        pause, oldest = service.slow_start_seconds / (STEPS - 1), now - service.slow_start_seconds
        steps = {a: 1 + int((now - began) / pause) for a, began in since.items() if began > oldest}
        self._plan(service.key, min((since[a] + step * pause for a, step in steps.items()), default=math.inf), now)
        return steps

    def _plan(self, service: str, moment: float, now: float) -> None:
        moment = max(moment, math.nextafter(now, math.inf))
        if moment == math.inf:
            self._next.pop(service, None)
        elif self._next.get(service) != moment:
            self._next[service] = moment
            heapq.heappush(self._agenda, (self._next[service], service))

    def _at_first(
        self, service: Service, slices: Iterable[EndpointSlice], ready: Iterable[Endpoint], zone: str, now: float
    ) -> dict[bytes, float]:
        """Return since when endpoints are there of which nothing was known."""
        weights = self._weights(service)
        if not weights:
            return {endpoint.address: LONG_AGO for endpoint in ready}
        balance, pause = balance_of(service, slices, zone, {}), service.slow_start_seconds / (STEPS - 1)
        since = {}
        for endpoint in ready:
            whole = balance.attributes(endpoint).weight
            there = weights.get(family(endpoint.address), {endpoint.address: whole}).get(endpoint.address, 0)
            step = round(there * STEPS / whole) if whole else STEPS
            since[endpoint.address] = LONG_AGO if step >= STEPS else now - pause * (max(step, 1) - 1)
        return since

    def _weights(self, service: Service) -> dict[int, dict[bytes, int]]:
        """Return the weights of the destinations that the kernel has for a Service, by family and address."""
        found: dict[int, dict[bytes, int]] = {}
        if self._present is None:
            return found
        for address in (*service.cluster_ips, *service.load_balancer_ips, *service.external_ips):
            for port in service.ports:
                state = self._present.get(FrontendKey(address, port.protocol, port.port))
                if state is not None:
                    weights = found.setdefault(family(address), {})
                    weights.update({d.address: a.weight for d, a in state.destinations.items()})
        return found
