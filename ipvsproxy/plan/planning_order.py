"""In which order Services are planned when not all can be at once: cheap ones that rarely change come first.

Deterministic: times are seconds of one clock that never goes back. A Service that has changed is to be planned by
a moment that lies the later the more work it is, with the work it has been in the last minutes. The earliest
moment comes first. No Service waits for ever: the moment is `LATEST` seconds after the change at most, and stays
the same however often the Service changes while it waits.
"""

import heapq

UNITS_A_SECOND = 400_000
"""Of size (`plan.tally`), roughly what planning and programming manages."""
LATEST = 10.0
FORGOTTEN_SECONDS = 60.0
"""Within this time, work that has been counts half."""
SLICE = 100_000
"""Size of the Services that are planned together, unless one alone is larger."""
REMEMBERED = 10_000
"""Services of which it is known how much work they were, before those that have long been quiet are forgotten."""


class PlanningOrder:
    """The Services that wait to be planned."""

    def __init__(self) -> None:
        self.size = SLICE
        self._waiting: dict[str, tuple[float, int]] = {}
        self._order: list[tuple[float, int, str]] = []
        self._number = 0
        # Work that a Service has been, and when that was reckoned.
        self._spent: dict[str, tuple[float, float]] = {}
        self._remembered = REMEMBERED

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, service: str, size: int, now: float) -> None:
        """Have a Service wait; one that waits already keeps its place."""
        if service in self._waiting:
            return
        spent, moment = self._spent.get(service, (0.0, now))
        spent *= 0.5 ** ((now - moment) / FORGOTTEN_SECONDS)
        by = now + min(LATEST, (size + spent) / UNITS_A_SECOND)
        self._waiting[service] = by, size
        self._number += 1
        heapq.heappush(self._order, (by, self._number, service))
        self._spent[service] = spent + size, now
        if len(self._spent) > self._remembered:
            self._forget(now)

    def take(self) -> list[str]:
        """Return the Services that come next: as many as fit into a slice together, one at least."""
        found: list[str] = []
        size = self.size
        while self._order and (size > 0 or not found):
            service = self._order[0][2]
            _, own = self._waiting[service]
            if found and own > size:
                break
            heapq.heappop(self._order)
            del self._waiting[service]
            found.append(service)
            size -= own
        return found

    def _forget(self, now: float) -> None:
        long_ago = now - 10 * FORGOTTEN_SECONDS
        self._spent = {service: known for service, known in self._spent.items() if known[1] > long_ago}
        self._remembered = max(REMEMBERED, 2 * len(self._spent))
