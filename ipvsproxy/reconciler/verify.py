"""The part that compares the kernel with what we know of it, now and then; the next apply repairs what differs.

All servers and VIPs are looked at, and the destinations of a part of the servers: the next part each time, so that
the cost of one verification is bounded. Belongs to the loop's thread.
"""

import math
from collections.abc import Callable

import structlog

from ipvsproxy.base import messages
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.state import Dirty
from ipvsproxy.reconciler.apply import Applier
from ipvsproxy.reconciler.part import Part, PartFailed
from nft import NftError

SUSPICION_SECONDS = 1.0

log = structlog.get_logger()


class Verifier(Part):
    """Verifies each `period` seconds, and soon after others were found to have changed the kernel."""

    def __init__(
        self,
        kernel: Kernel,
        applier: Applier,
        clock: Callable[[], float],
        report: Report,
        node: str,
        period: float,
    ) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._applier = applier
        self._report = report
        self._node = node
        self._period = period
        self._rival = ""
        self._next = math.inf

    @property
    def next_due(self) -> float:
        """When to verify, not before the start is done; at once while a large server is being read."""
        return -math.inf if self._kernel.is_verifying else self._next

    @property
    def is_unfinished(self) -> bool:
        """Whether the next piece of a large server is to be read."""
        return self._kernel.is_verifying

    def begin(self, now: float) -> None:
        """The start is done, which has read everything."""
        self._next = now + self._period

    def suspect(self, now: float) -> None:
        """Others were at work: verify soon."""
        self._next = min(self._next, now + SUSPICION_SECONDS)

    def run(self, now: float) -> int:
        """Verify everything, or go on with a large server; what differs is pending.

        Raises PartFailed when something could not be read, KernelError when a large server cannot.
        """
        if now < self._next:
            self._found(self._kernel.verify_large())
            return 0
        self._kernel.keep_settings()
        changed, unread = self._check_all()
        self._found(changed)
        if unread:
            # Large servers have their turn all the same, however long that lasts.
            self._found(self._kernel.verify_large())
            raise PartFailed("; ".join(unread))
        self._kernel.check_load()
        self.take_over()
        self._next = now + self._period
        return 0

    def _found(self, changed: Dirty) -> None:
        if changed:
            log.warning(messages.VERIFICATION_REPAIRED, servers=len(changed.servers), vips=len(changed.vips))
            self._report.repaired(len(changed))
            self._applier.found_different(changed)

    def take_over(self) -> None:
        """Remove what a kube-proxy has left; report when another one begins to work here, or ends."""
        self._kernel.take_over()
        if self._kernel.rival != self._rival:
            self._rival = self._kernel.rival
            self._report.rival(self._node, self._rival)

    def _check_all(self) -> tuple[Dirty, list[str]]:
        """Return what differs, and what could not be read; that keeps nothing else from being repaired."""
        kernel, changed, unread = self._kernel, Dirty(), []
        for check in (kernel.verify_vips, kernel.verify_servers, kernel.verify_rules, kernel.verify_others):
            try:
                changed.update(check())
            except (KernelError, NftError) as error:
                unread.append(str(error))
        return changed, unread
