"""Between a change and conntrack: when the kernel has a change, what it has made stale is swept out.

`plan.stale` decides what that is, `kernel.conntrack` finds and deletes it. Here is only the waiting: until the
change of a frontend has been carried out, and, after a sweep that failed, for the next try. Owned by the loop's
thread.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import structlog

from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.backoff import Backoff
from ipvsproxy.plan.stale import GroupOf, Stale, Sweep, not_judged
from ipvsproxy.plan.state import Destination, Dirty, Frontend, FrontendKey
from ipvsproxy.reconciler.part import Part

PAUSE_SECONDS = 30.0
"""After a sweep that failed."""

log = structlog.get_logger()


class Sweeper(Part):
    """Sweeps what changes have made stale. `waiting` has what failed: its changes are not all in the kernel.

    `group_of` has the group that a source is in at the moment.
    """

    def __init__(
        self,
        kernel: Kernel,
        waiting: Backoff,
        clock: Callable[[], float],
        report: Report,
        group_of: GroupOf = not_judged,
    ) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._waiting = waiting
        self._clock = clock
        self._report = report
        self._stale = Stale(group_of)
        # Changed, and not all of it in the kernel yet; by address.
        self._changing: dict[bytes, set[FrontendKey]] = {}
        self._not_before = -math.inf

    @property
    def next_due(self) -> float:
        """At once when something is stale, unless a sweep has just failed."""
        return self._not_before if self._stale else math.inf

    def note_new_vips(self, addresses: Iterable[bytes]) -> None:
        """Record addresses that have become local."""
        self._stale.note_new_vips(addresses)

    def note_sources(self, addresses: Iterable[bytes]) -> None:
        """Record addresses that have left a group of sources."""
        self._stale.note_sources(addresses)

    def note(self, changed: Dirty, frontends: Mapping[FrontendKey, Frontend]) -> None:
        """Record what has just been changed; what is not yet in the kernel, or not all of it, has to wait."""
        if not self._waiting and not self._changing:
            self._stale.note(changed.servers, frontends)
            return
        candidates = set(changed.servers)
        for address in _addresses(changed):
            candidates |= self._changing.pop(address, set())
        ready = {key for key in candidates if not self._waiting.holds(key)}
        for key in candidates - ready:
            self._changing.setdefault(key.address, set()).add(key)
        self._stale.hold(candidates - ready, frontends)
        self._stale.note(ready, frontends)

    def cut(self, key: FrontendKey, destinations: frozenset[Destination]) -> None:
        """Record destinations of a server that have been deleted though they had connections."""
        self._stale.cut(key, destinations)

    def run(self, now: float) -> int:
        """Delete what has become stale; what fails is tried again later."""
        for sweep in self._stale.sweeps():
            if not self.carry_out(sweep):
                self._not_before = now + PAUSE_SECONDS
                break
            self._stale.done(sweep)
        return 0

    def carry_out(self, sweep: Sweep) -> bool:
        """Delete what a sweep names; return whether that could be done."""
        began = self._clock()
        try:
            deleted = self._kernel.sweep(sweep)
        except KernelError as error:
            log.error("Could not search conntrack for stale entries, will retry", err=str(error))
            return False
        seconds = self._clock() - began
        self._report.swept(sweep.family, seconds, deleted)
        if deleted:
            log.info("Deleted stale conntrack entries", count=deleted, seconds=round(seconds, 3))
        return True


def _addresses(changed: Dirty) -> set[bytes]:
    """Return the addresses that a change is about."""
    of_elements = (slot.address for slot in changed.slots)
    return {*filter(None, of_elements), *(key.address for key in changed.servers), *changed.vips}
