"""Destinations that are no longer wanted and wait for their last connection: when to look, and when they end.

A TCP destination that is no longer wanted has weight 0 (`plan.diff`): its connections go on, new ones go
elsewhere. It ends when it has no connection any more, when the drain timeout of its Service has passed (contract
4.5), or, where the Service wants that, when its pod is gone. Weight 0 in the kernel is the only memory of it, so a
restart forgets nothing but how long it has lasted.

The kernel does not tell when a connection ends, so it is asked: soon after a drain began, and then less often,
always after another quarter of the time it has lasted. That finds an end early in proportion, with a number of
reads that hardly grows. One read is about one server, and their number in one second is limited: a rolling update
of thousands of Services costs no more than one of hundreds. No I/O and no clock: the caller passes the time.
"""

import heapq
import math
from collections.abc import Iterator, Mapping

import msgspec

from ipvsproxy.config.annotation_values import UNTIL_POD_IS_GONE
from ipvsproxy.plan.state import Destination, Frontend, FrontendKey, ServerState

SOONEST, LATEST = 1.0, 300.0
"""Least and longest time between two looks at a server, in seconds."""
SHARE = 0.25
"""... and what it is in between, as a part of the time for which the youngest of its drains has lasted."""
READ_A_SECOND = 2000
"""Destinations: a server with more is looked at more rarely, since reading it takes its time."""
LOOKS_AT_ONCE, READ_AT_ONCE = 200, 50_000
GONE_SECONDS = 10.0
"""A slice that loses an endpoint need not mean that its pod is gone: another slice may get it next."""
PAUSE_SECONDS = 1.0
"""After so many looks, or so many destinations that one look or several have read, the others wait so long."""


def draining(frontend: Frontend, state: ServerState) -> list[Destination]:
    """Return the destinations that are no longer wanted but may still carry connections."""
    wanted = frontend.balanced
    if state.destinations.keys() <= wanted.keys():  # as after most changes
        return []
    present = state.destinations
    return [d for d in present if d not in wanted and present[d].weight == 0]


class Drain(msgspec.Struct):
    """One destination: since when it drains, when it must end, and when it is looked at next."""

    since: float
    deadline: float
    look: float


class Ended(msgspec.Struct, frozen=True):
    """A destination that can be deleted; `connections` are cut by the deadline, 0 if it ended by itself."""

    destination: Destination
    connections: int


NOTHING: dict[Destination, Drain] = {}


class Drains:
    """All draining destinations, by server. Times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self._servers: dict[FrontendKey, dict[Destination, Drain]] = {}
        self._looks: dict[FrontendKey, float] = {}
        # All destinations of a server: what a look reads.
        self._sizes: dict[FrontendKey, int] = {}
        # Each server has one entry that counts, the one in `_looks`; others are leftovers and are dropped.
        self._agenda: list[tuple[float, FrontendKey]] = []
        self._resting_until = -math.inf
        self.destinations = 0

    @property
    def servers(self) -> int:
        """The number of servers with draining destinations."""
        return len(self._servers)

    @property
    def next_look(self) -> float:
        """When `due` has something to return, infinity for never."""
        return max(self._agenda[0][0], self._resting_until) if self._agenda else math.inf

    def note(self, key: FrontendKey, frontend: Frontend | None, state: ServerState | None, now: float) -> None:
        """Record what drains on a server, after any change of it; a drain that goes on keeps its age."""
        old = self._servers.pop(key, NOTHING)
        leaving = draining(frontend, state) if frontend and state else ()
        self.destinations += len(leaving) - len(old)
        if frontend is None or not leaving:
            if old:
                self._looks.pop(key, None)
                self._sizes.pop(key, None)
            return
        self._servers[key] = drains = {}
        self._sizes[key] = len(state.destinations) if state else 0
        soonest = now + self._least_pause(key)
        with_pods = frontend.drain_seconds == UNTIL_POD_IS_GONE
        longest = frontend.drain_seconds or math.inf
        for destination in leaving:
            drain = drains[destination] = old.get(destination) or Drain(now, math.inf, soonest)
            deadline = drain.since + longest
            if with_pods:
                deadline = _deadline_with_pod(drain, destination, frontend, now)
            if drain.deadline != deadline:
                drain.deadline = deadline
                drain.look = min(drain.look, max(now, deadline))
        self._plan(key)

    def due(self, now: float) -> list[FrontendKey]:
        """Return servers whose connections are to be counted now; their next look is planned."""
        if now < self.next_look:
            return []
        found = list(self._take(now))
        for key in found:
            least = self._least_pause(key)
            for drain in self._servers[key].values():
                drain.look = _next_look(drain, now, least)
            self._plan(key)
        return found

    def ended(self, key: FrontendKey, connections: Mapping[Destination, int], now: float) -> list[Ended]:
        """Return the destinations of a server that can be deleted; what the kernel did not name is left alone."""
        found = []
        for destination, drain in self._servers.get(key, {}).items():
            count = connections.get(destination)
            if count == 0 or (count is not None and now >= drain.deadline):
                found.append(Ended(destination, count))
        return found

    def is_draining(self, key: FrontendKey, destination: Destination, since: float = math.inf) -> bool:
        """Whether a destination of a server is not wanted, and has not been wanted since some moment."""
        drain = self._servers.get(key, NOTHING).get(destination)
        return drain is not None and drain.since <= since

    def _take(self, now: float) -> Iterator[FrontendKey]:
        destinations = 0
        for _ in range(LOOKS_AT_ONCE):
            while self._agenda and self._looks.get(self._agenda[0][1]) != self._agenda[0][0]:
                heapq.heappop(self._agenda)
            if not self._agenda or self._agenda[0][0] > now:
                return
            key = heapq.heappop(self._agenda)[1]
            del self._looks[key]
            yield key
            destinations += self._sizes[key]
            if destinations >= READ_AT_ONCE:
                break
        self._resting_until = now + PAUSE_SECONDS

    def _least_pause(self, key: FrontendKey) -> float:
        return max(SOONEST, self._sizes[key] / READ_A_SECOND)

    def _plan(self, key: FrontendKey) -> None:
        """Put the earliest look at one of a server's destinations on the agenda."""
        look = min([drain.look for drain in self._servers[key].values()])
        if self._looks.get(key) != look:
            self._looks[key] = look
            heapq.heappush(self._agenda, (look, key))


def _deadline_with_pod(drain: Drain, destination: Destination, frontend: Frontend, now: float) -> float:
    if destination in frontend.remaining:
        return math.inf
    return drain.deadline if drain.deadline < math.inf else now + GONE_SECONDS


def _next_look(drain: Drain, now: float, least: float) -> float:
    later = now + max(least, min(LATEST, (now - drain.since) * SHARE))
    return min(later, drain.deadline) if now < drain.deadline else later
