"""Between a change and conntrack: when the kernel has a change, what it has made stale is swept out.

`plan.stale` decides what that is, `kernel.conntrack` finds and deletes it. Here is only the waiting: until the
change of a frontend has been carried out, and, after a sweep that failed, for the next try. Owned by the loop's
thread.
"""

import math
from collections.abc import Callable, Collection, Mapping

import structlog

from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.backoff import Backoff
from ipvsproxy.plan.stale import Stale, Sweep
from ipvsproxy.plan.state import Destination, Dirty, Frontend, FrontendKey

PAUSE_SECONDS = 30.0
"""After a sweep that failed."""

log = structlog.get_logger()


class Sweeper:
    """Sweeps what changes have made stale."""

    def __init__(self, kernel: Kernel, clock: Callable[[], float], report: Report) -> None:
        self._kernel = kernel
        self._clock = clock
        self._report = report
        self._stale = Stale()
        # Changed, and not all of it in the kernel yet; by address.
        self._changing: dict[bytes, set[FrontendKey]] = {}
        self._not_before = -math.inf

    @property
    def next_try(self) -> float:
        """When `sweep` has something to do, infinity for never."""
        return self._not_before if self._stale else math.inf

    def note(
        self,
        changed: Dirty,
        frontends: Mapping[FrontendKey, Frontend],
        waiting: Backoff,
        new_vips: Collection[bytes] = (),
    ) -> None:
        """Record what has just been changed; what is not yet in the kernel, or not all of it, has to wait.

        `waiting` has what failed. `new_vips` are the addresses that have become local with this change.
        """
        self._stale.note_new_vips(new_vips)
        if not waiting and not self._changing:
            self._stale.note(changed.servers, frontends)
            return
        candidates = set(changed.servers)
        for address in _addresses(changed):
            candidates |= self._changing.pop(address, set())
        ready = {key for key in candidates if not waiting.holds(key)}
        for key in candidates - ready:
            self._changing.setdefault(key.address, set()).add(key)
        self._stale.note(ready, frontends)

    def cut(self, key: FrontendKey, destinations: frozenset[Destination]) -> None:
        """Take over destinations of a server that have been deleted though they had connections."""
        self._stale.cut(key, destinations)

    def sweep(self) -> None:
        """Delete what has become stale, if anything has; what fails is tried again later."""
        if self._clock() < self.next_try:
            return
        for sweep in self._stale.sweeps():
            try:
                self._carry_out(sweep)
            except KernelError as error:
                log.error("Could not search conntrack for stale entries, will retry", err=str(error))
                self._not_before = self._clock() + PAUSE_SECONDS
                return
            self._stale.done(sweep)

    def _carry_out(self, sweep: Sweep) -> None:
        began = self._clock()
        deleted = self._kernel.sweep(sweep)
        seconds = self._clock() - began
        self._report.swept(sweep.family, seconds, deleted)
        if deleted:
            log.info("Deleted stale conntrack entries", count=deleted, seconds=round(seconds, 3))


def _addresses(changed: Dirty) -> set[bytes]:
    """Return the addresses that a change is about."""
    of_elements = (slot.address for slot in changed.slots)
    return {*filter(None, of_elements), *(key.address for key in changed.servers), *changed.vips}
