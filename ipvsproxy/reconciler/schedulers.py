"""The part that finds out whether the kernel has the schedulers that Services ask for.

Asking has the kernel load a module, which takes as long as a disk does. So at the start it comes before all else,
and later a thread of its own does it, and puts the answer into the inbox. What is missing is asked for again each
`period` seconds.
"""

import math
from collections.abc import Callable, Collection
from threading import Thread

import structlog

from ipvsproxy.base import messages
from ipvsproxy.exchange.inbox import Inbox, SchedulersFound
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.wanted_state import WantedState

log = structlog.get_logger()


def in_a_thread(work: Callable[[], None]) -> None:
    """Run something that may take long beside the loop."""
    Thread(target=work, name="schedulers", daemon=True).start()


class SchedulerLook(Part):
    """Asks for those of which nothing is known, at once, and for missing ones now and then."""

    def __init__(
        self,
        kernel: Kernel,
        wanted: WantedState,
        inbox: Inbox,
        clock: Callable[[], float],
        period: float,
        aside: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._wanted = wanted
        self._inbox = inbox
        self._period = period
        self._aside = aside
        self._next = math.inf
        self._is_asking = False
        wanted.schedulers.ask()

    @property
    def next_due(self) -> float:
        """At once when a Service asks for one of which nothing is known."""
        if self._is_asking:
            return math.inf
        return -math.inf if self._wanted.schedulers.unknown else self._next

    def run(self, now: float) -> int:
        """Ask for them in a thread."""
        schedulers = self._wanted.schedulers
        names = schedulers.unknown | schedulers.missing
        self._is_asking, self._next = True, now + self._period
        self._aside(lambda: self._inbox.put(SchedulersFound(self._look(names))))
        return 0

    def start(self, now: float) -> None:
        """Ask for all that Services want; those of servers that have been adopted are there."""
        schedulers = self._wanted.schedulers
        in_use = {state.server.scheduler for state in self._kernel.shadow.servers.values()}
        schedulers.found(dict.fromkeys(in_use, True))
        schedulers.found(self._look(self._wanted.schedulers_of_services() - in_use))
        self._next = now + self._period if schedulers.missing else math.inf

    def found(self, event: SchedulersFound) -> None:
        """Take note of an answer; Services for which it makes a difference are planned anew."""
        self._is_asking = False
        self._wanted.schedulers_found(event.states)
        schedulers = self._wanted.schedulers
        if not (schedulers.missing or schedulers.unknown):
            self._next = math.inf

    def _look(self, names: Collection[str]) -> dict[str, bool]:
        found = {}
        for name in sorted(names):
            try:
                found[name] = self._kernel.has_scheduler(name)
            except (KernelError, OSError) as error:
                log.warning(messages.SCHEDULER_UNKNOWN, scheduler=name, err=str(error))
                found[name] = False
        return found
