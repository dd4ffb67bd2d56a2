"""The parts that plan Services which have changed, and that sum up what was not logged about them."""

import math
from collections.abc import Callable

import structlog

from ipvsproxy.base.budget import LOGGED_AT_ONCE
from ipvsproxy.reconciler.apply import Applier
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.wanted_state import WantedState

log = structlog.get_logger()


class Planner(Part):
    """Plans the next of the Services that have changed; what that touches is pending."""

    def __init__(self, wanted: WantedState, applier: Applier, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._wanted = wanted
        self._applier = applier

    @property
    def next_due(self) -> float:
        """At once while a Service has changed, or when an endpoint gets more of its weight."""
        return -math.inf if self._wanted.backlog else self._wanted.next_step

    def run(self, now: float) -> int:
        """Plan one slice."""
        keys, touched = self._wanted.plan_next(now)
        if touched:
            log.debug("Planned changed Services", services=keys[:LOGGED_AT_ONCE], frontends=len(touched.servers))
            self._applier.add(touched)
        return 0


class Withheld(Part):
    """Logs each `period` seconds how many lines about Services were left out."""

    def __init__(self, wanted: WantedState, clock: Callable[[], float], period: float) -> None:
        super().__init__(clock)
        self._wanted = wanted
        self._period = period
        self._next = clock() + period

    @property
    def next_due(self) -> float:
        """Once a period."""
        return self._next

    def run(self, now: float) -> int:
        """Log them."""
        self._next = now + self._period
        self._wanted.report_withheld()
        return 0
