"""When connections end whose endpoint has left a frontend on the short path: the deadlines of its drain timeout.

Only conntrack knows these connections. So at a deadline everything is stale that leads to an endpoint which is
neither wanted nor still within its time. What has left before a restart is not known, and gets the whole timeout
again (as a destination of IPVS does, `plan.drain`). Connections outlive the path, so a frontend is followed until
it is gone. SCTP has no drain (contract 4.5): its connections end with their endpoint. UDP clients are those of
`plan.stale`. Deterministic: no I/O, no clock. Times are seconds of one clock that never goes back.
"""

import heapq
import math
from collections.abc import Iterator, Mapping

import msgspec

from ipvsproxy.base.address import family
from ipvsproxy.config.annotation_values import UNTIL_POD_IS_GONE
from ipvsproxy.plan.drain import GONE_SECONDS
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.stale import Sweep, SweepRule
from ipvsproxy.plan.state import SHORT_PATH, Destination, Frontend, FrontendKey

TCP, SCTP = Protocol.TCP, Protocol.SCTP


class ShortDrain(msgspec.Struct):
    """What a frontend leads to, what it has led to and since when not, and how long that may last.

    Where connections may last as long as the pod does, endpoints whose pod is there are among the `wanted`.
    """

    wanted: frozenset[Destination]
    since: dict[Destination, float]
    seconds: float

    def may_go_on(self, now: float) -> frozenset[Destination]:
        """Return the endpoints whose connections go on."""
        return self.wanted.union(d for d, since in self.since.items() if since + self.seconds > now)


class ShortDrains:
    """All frontends on the short path whose endpoints have a deadline."""

    def __init__(self) -> None:
        self._frontends: dict[FrontendKey, ShortDrain] = {}
        self._agenda: list[tuple[float, FrontendKey]] = []

    @property
    def next_due(self) -> float:
        """When something has to end, infinity for never."""
        return self._agenda[0][0] if self._agenda else math.inf

    def note(self, key: FrontendKey, frontend: Frontend | None, now: float) -> None:
        """Record a frontend after any change of it."""
        old = self._frontends.pop(key, None)
        if frontend is None or (old is None and frontend.path is not SHORT_PATH):
            return
        seconds = _seconds(frontend)
        if seconds is None:
            return
        until_gone = frontend.remaining if frontend.drain_seconds == UNTIL_POD_IS_GONE else ()
        wanted = frozenset((*frontend.destinations, *frontend.internal, *until_gone))
        since = {d: began for d, began in old.since.items() if d not in wanted} if old else {}
        left = old.wanted - wanted if old else frozenset()
        self._frontends[key] = ShortDrain(wanted, since | dict.fromkeys(left, now), seconds)
        if old is None or left:
            self._plan(now + seconds, key)
        if old is not None and old.seconds != seconds:
            for began in since.values():
                self._plan(max(now, began + seconds), key)

    def sweeps(self, now: float) -> Iterator[Sweep]:
        """Yield what has come to its end, which is taken for swept unless `later` specifies otherwise."""
        groups: dict[tuple[int, int], dict[FrontendKey, SweepRule]] = {}
        while self._agenda and self._agenda[0][0] <= now:
            _, key = heapq.heappop(self._agenda)
            if leaving := self._frontends.get(key):
                rule = SweepRule(endpoints=leaving.may_go_on(now))
                groups.setdefault((family(key.address), key.protocol), {})[key] = rule
        for leaving in map(self._frontends.__getitem__, {key for found in groups.values() for key in found}):
            leaving.since = {d: began for d, began in leaving.since.items() if began + leaving.seconds > now}
        for (number, protocol), rules in sorted(groups.items()):
            yield Sweep(number, protocol, rules)

    def later(self, keys: Mapping[FrontendKey, SweepRule], when: float) -> None:
        """Have frontends swept again that could not be."""
        for key in keys:
            self._plan(when, key)

    def _plan(self, when: float, key: FrontendKey) -> None:
        heapq.heappush(self._agenda, (when, key))


def _seconds(frontend: Frontend) -> float | None:
    """Return how long connections may outlive their endpoint, None for ever."""
    if frontend.key.protocol not in (TCP, SCTP):
        return None
    if frontend.key.protocol == SCTP:
        return 0.0
    return GONE_SECONDS if frontend.drain_seconds == UNTIL_POD_IS_GONE else frontend.drain_seconds or None
