"""Whether the proxy is alive and keeps up, and whether its node should get traffic: `/healthz` and `/livez`.

A family is healthy as long as nothing has been waiting to be programmed for twice the sync period, and while the
loop still turns: it reports this with every verification, so three silent periods mean that it hangs. The process
is healthy if every family is. One that waits for another proxy of this node to end is healthy and reports this:
the node is served, and a rolling update must find the new pod ready before it ends the old one. `/healthz` asks
for an eligible node and a first complete sync as well: cloud load balancers send traffic by it. Contract 5.1;
`reason`, why a node is not eligible, is our own addition. Thread-safe: the loop writes, threads of the server
read.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from ipvsproxy.serve.http import NOT_FOUND, HttpAnswer, Request

HEADERS = {"X-Content-Type-Options": "nosniff"}
JSON = "application/json"
FAMILY_NAMES = {4: "IPv4", 6: "IPv6"}


class Health:
    """The state behind the health server: `sync_period` in seconds, families as 4 and 6.

    `clock` is what time it is, for the answers; `steady` measures how long something waits, so that setting
    the clock makes nothing unhealthy.
    """

    def __init__(
        self,
        sync_period: float,
        families: Iterable[int],
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._period = sync_period
        self._families = tuple(families)
        self._clock = clock
        self._steady = steady
        self._lock = threading.Lock()
        self._updated: dict[int, float] = {}
        self._queued: dict[int, float] = {}
        self._heard: dict[int, float] = {}
        self._moved = -math.inf
        self._eligible = False
        self._reason = ""
        self._holder = ""
        self._lacking: tuple[str, ...] = ()

    def queued(self, families: Iterable[int] | None = None) -> None:
        """Something waits to be programmed, in all families or in some; only the oldest moment counts."""
        now = self._steady()
        with self._lock:
            for number in self._families if families is None else families:
                self._queued.setdefault(number, now)

    def succeeded(self, behind: Iterable[int] = ()) -> None:
        """A sync has succeeded in all families but those `behind`."""
        now, steady = self._clock(), self._steady()
        with self._lock:
            for number in set(self._families).difference(behind):
                self._updated[number] = now
                self._heard[number] = steady
                self._queued.pop(number, None)

    def progressed(self) -> None:
        """A part of what waits is done; the process lives, though it is not up to date."""
        with self._lock:
            self._moved = self._steady()

    def node(self, *, eligible: bool, reason: str = "") -> None:
        """Record whether load balancers may send traffic to this node, and what is unusual about it."""
        with self._lock:
            self._eligible = eligible
            self._reason = reason

    def lacking_rights(self, kinds: Iterable[str]) -> None:
        """The API server refuses to list some kinds of objects: a rolling update must not go on with that."""
        with self._lock:
            self._lacking = tuple(kinds)

    def standby(self, holder: str) -> None:
        """Another proxy has this node: we wait for it, until there is none ('')."""
        with self._lock:
            self._holder = holder

    @property
    def healthy(self) -> bool:
        """Whether no family is late; true before the first sync, since waiting for the API is normal."""
        with self._lock:
            return self._healthy()

    def healthz(self) -> tuple[int, bytes]:
        """Return status and body: 200 if healthy, synced once, and the node is eligible."""
        now = self._clock()
        with self._lock:
            if self._holder:
                return self._answer(now, True, {"waitingFor": self._holder}, ok=True)
            synced = len(self._updated) == len(self._families)
            healthy = self._healthy() and synced and not self._lacking
            node: dict[str, Any] = {"nodeEligible": self._eligible}
            if self._reason:
                node["reason"] = self._reason
            if self._lacking:
                node["lackingRights"] = list(self._lacking)
            return self._answer(now, healthy, node, ok=healthy and self._eligible)

    def livez(self) -> tuple[int, bytes]:
        """Return status and body: 200 if healthy, or on the way: much work at once is no reason for a restart."""
        now = self._clock()
        with self._lock:
            healthy = self._healthy() or self._steady() - self._moved < 2 * self._period
            return self._answer(now, healthy, {}, ok=healthy)

    def _healthy(self) -> bool:
        return all(self._in_time(number) for number in self._families)

    def _in_time(self, number: int) -> bool:
        now = self._steady()
        waiting = now - self._queued.get(number, now)
        return waiting < 2 * self._period and now - self._heard.get(number, now) < 3 * self._period

    def _answer(self, now: float, healthy: bool, more: dict[str, Any], *, ok: bool) -> tuple[int, bytes]:
        latest = max(self._updated.values(), default=0.0)
        body: dict[str, Any] = {"lastUpdated": stamp(now if ok else latest), "currentTime": stamp(now)}
        body |= more | {"healthy": healthy}
        if self._updated:
            body["status"] = {
                FAMILY_NAMES[number]: {"lastUpdated": stamp(updated), "healthy": self._in_time(number)}
                for number, updated in sorted(self._updated.items())
            }
        return 200 if ok else 503, json.dumps(body, separators=(",", ":")).encode()


def stamp(seconds: float) -> str:
    """Return a time as RFC 3339 with nanoseconds, as Go writes it; 0 is Go's zero time."""
    if not seconds:
        return "0001-01-01T00:00:00Z"
    moment = datetime.fromtimestamp(seconds, UTC)
    fraction = f"{moment:%f}000".rstrip("0")
    return f"{moment:%Y-%m-%dT%H:%M:%S}" + (f".{fraction}" if fraction else "") + "Z"


def responder(health: Health, count: Callable[[str, int], None]) -> Callable[[Request], HttpAnswer]:
    """Return what answers on the health port; `count` is called with path and status of each answer."""
    paths = {"/healthz": health.healthz, "/livez": health.livez}

    def respond(request: Request) -> HttpAnswer:
        ask = paths.get(request.path)
        if ask is None:
            return NOT_FOUND
        status, body = ask()
        count(request.path, status)
        return HttpAnswer(status, body, JSON, HEADERS)

    return respond
