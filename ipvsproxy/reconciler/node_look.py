"""The parts that look at the node: its addresses and what it depends on, and the programs that listen on it."""

import math
from collections.abc import Callable

import structlog

from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.reconciler.apply import Applier
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.wanted_state import WantedState

PAUSE_SECONDS = 1.0
"""After listening programs could not be read."""

log = structlog.get_logger()


class NodeLook(Part):
    """Looks at the addresses of this node each `period` seconds, and whenever they have changed.

    While that fails, Services are served with the facts there were.
    """

    def __init__(
        self, kernel: Kernel, wanted: WantedState, applier: Applier, clock: Callable[[], float], period: float
    ) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._wanted = wanted
        self._applier = applier
        self._period = period
        self._next = -math.inf

    @property
    def next_due(self) -> float:
        """At once when the kernel or the objects tell of a change."""
        return -math.inf if self._wanted.needs_look_at_node else self._next

    def addresses_changed(self) -> None:
        """Look as soon as possible."""
        self._next = -math.inf
        self.retry.now()

    def run(self, now: float) -> int:
        """Find the facts again; what that changes is pending. Raises KernelError."""
        kernel = self._kernel
        self._applier.add(self._wanted.look_at_node(kernel.other_addresses(), kernel.reserved(), kernel.senders()))
        self._next = now + self._period
        return 0


class ListenerLook(Part):
    """Reads which ports programs listen on, each `period` seconds and when a Service asks for another port."""

    def __init__(self, kernel: Kernel, wanted: WantedState, clock: Callable[[], float], period: float) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._wanted = wanted
        self._period = period
        self._next = self._not_before = -math.inf

    @property
    def next_due(self) -> float:
        """At once when a Service asks for a port of which that is not known."""
        return self._not_before if self._wanted.needs_listeners else self._next

    def run(self, now: float) -> int:
        """Read them; where that fails, what was known counts."""
        try:
            self._wanted.listening(self._kernel.listening())
        except KernelError as error:
            log.warning("Could not list listening sockets, keeping the last known ones", err=str(error))
            self._not_before = now + PAUSE_SECONDS
        self._next = now + self._period
        return 0
