"""The Services that claim a frontend and do not hold it, in the order in which they would get it.

Deterministic: no I/O, no clock. All costs are logarithmic in the number of claims: one Service can claim thousands
of frontends, and thousands of Services one.
"""

import heapq
from typing import NamedTuple

from ipvsproxy.plan.state import Claim, Frontend


class RankedService(NamedTuple):
    """A Service in the order in which Services win frontends: age, then `namespace/name`."""

    created: str
    service: str


class Waiting:
    """The claims to one frontend that wait."""

    __slots__ = ("_order", "frontends")

    def __init__(self) -> None:
        self.frontends: dict[RankedService, Frontend] = {}
        # Claims that have been withdrawn or changed are dropped when they come up, or when they are most of it.
        self._order: list[tuple[Claim, RankedService]] = []

    def __bool__(self) -> bool:
        return bool(self.frontends)

    def add(self, owner: RankedService, frontend: Frontend) -> bool:
        """Have an owner wait, with what it wants the frontend to be; tell whether it did not wait before."""
        old = self.frontends.get(owner)
        self.frontends[owner] = frontend
        if old is None or old.claim is not frontend.claim:
            heapq.heappush(self._order, (frontend.claim, owner))
        return old is None

    def remove(self, owner: RankedService) -> None:
        """Withdraw a claim."""
        del self.frontends[owner]
        if len(self._order) > 2 * len(self.frontends) + 8:
            self._order = [(frontend.claim, other) for other, frontend in self.frontends.items()]
            heapq.heapify(self._order)

    def take_first(self) -> tuple[RankedService, Frontend]:
        """Return who comes next, who no longer waits then. There must be one."""
        while True:
            claim, owner = heapq.heappop(self._order)
            frontend = self.frontends.get(owner)
            if frontend is not None and frontend.claim is claim:
                del self.frontends[owner]
                return owner, frontend
