"""The part that finds out whether the kernel has the schedulers that Services ask for.

Asking has the kernel load a module, which takes as long as a disk does. So a thread of its own does it (with a
virtual server that no Service has, and deletes again: the only write to the kernel beside the loop), and puts the
answer into the inbox; the start, which comes before all else, waits for it, but not for long. What is missing
is asked for again each `period` seconds.
"""

import math
from collections.abc import Callable, Collection
from threading import Event, Thread

import structlog

from ipvsproxy.base import messages
from ipvsproxy.exchange.inbox import Inbox, SchedulersFound
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.plan.schedulers import in_use
from ipvsproxy.reconciler.part import Part, PartFailed
from ipvsproxy.reconciler.wanted_state import WantedState

START_SECONDS = 2.0
"""How long the start waits for the answer: Services that need no scheduler of their own wait as well."""

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
        # The answer that the start has waited for.
        self._taken: dict[str, bool] = {}
        wanted.schedulers.ask()

    @property
    def next_due(self) -> float:
        """At once when a Service asks for one of which nothing is known."""
        if self._is_asking:
            return math.inf
        return -math.inf if self._wanted.schedulers.unknown else self._next

    def run(self, now: float) -> int:
        """Ask for them in a thread, as far as Services still want them. Raises PartFailed where there is none."""
        schedulers = self._wanted.schedulers
        schedulers.only(self._wanted.schedulers_of_services())
        if names := schedulers.unknown | schedulers.missing:
            self._ask(names, now)
        else:
            self._next = math.inf
        return 0

    def _ask(self, names: Collection[str], now: float) -> tuple[Event, list[dict[str, bool]]]:
        """Ask beside the loop; return what tells of the answer, and where it is then."""
        is_answered, answers = Event(), list[dict[str, bool]]()

        def look() -> None:
            answers.append(found := self._look(names))
            self._inbox.put(SchedulersFound(found))
            is_answered.set()

        try:
            self._aside(look)
        except RuntimeError as error:
            raise PartFailed(f"no thread to look for schedulers: {error}") from error
        self._is_asking, self._next = True, now + self._period
        return is_answered, answers

    def start(self, now: float) -> None:
        """Ask for all that Services want; those of servers that have been adopted are there.

        Where the answer takes long, the Services in question are planned without it, and again when it is there.
        """
        schedulers = self._wanted.schedulers
        schedulers.found(dict.fromkeys(in_use(self._kernel.shadow.servers.values()), True))
        names = self._wanted.schedulers_of_services() - schedulers.known
        if names and not self._is_asking:
            try:
                is_answered, answers = self._ask(names, now)
            except PartFailed as error:
                log.warning(messages.SCHEDULER_UNKNOWN, scheduler=sorted(names), err=str(error))
                return
            is_answered.wait(START_SECONDS)
            if answers:
                self._taken = answers[0]
                schedulers.found(self._taken)
                self._found()

    def found(self, event: SchedulersFound) -> None:
        """Take note of an answer; Services for which it makes a difference are planned anew."""
        if event.states is not self._taken:
            self._wanted.schedulers_found(event.states)
            self._found()

    def _found(self) -> None:
        self._is_asking = False
        schedulers = self._wanted.schedulers
        if not (schedulers.missing or schedulers.unknown):
            self._next = math.inf

    def _look(self, names: Collection[str]) -> dict[str, bool]:
        found = {}
        for name in sorted(names):
            try:
                found[name] = self._kernel.has_scheduler(name)
            except Exception as error:  # noqa: BLE001 - the top of a thread: without an answer none is asked again
                log.warning(messages.SCHEDULER_UNKNOWN, scheduler=name, err=str(error))
                found[name] = False
        return found
