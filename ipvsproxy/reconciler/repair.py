"""Putting right at once what others have changed, as the kernel tells of it, and never fighting for long.

In: notifications that are not about our own work, and what `reconciler.sample` has found. Out: a restored ruleset,
and the names of VIPs and servers that differ, which the next apply puts back. Belongs to the loop's thread.
"""

from collections.abc import Callable

import structlog

from ipvsproxy.base import messages
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.plan.notification import Notification, VipsChanged
from ipvsproxy.plan.repair_backoff import RepairBackoff
from ipvsproxy.plan.state import Dirty
from ipvsproxy.reconciler.apply import Applier
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.verify import Verifier

log = structlog.get_logger()


class Repairer(Part):
    """What others are suspected to have changed. `longest` is the longest wait while contested, in seconds."""

    def __init__(  # noqa: PLR0913 - whom a repair concerns
        self,
        kernel: Kernel,
        applier: Applier,
        verifier: Verifier,
        clock: Callable[[], float],
        report: Report,
        node: str,
        longest: float,
    ) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._applier = applier
        self._verifier = verifier
        self._report = report
        self._clock = clock
        self._node = node
        self._repair_backoff = RepairBackoff(longest)
        self._forget()

    def _forget(self) -> None:
        self._vips = self._servers = self._whole = self._unsure = False
        self._sets: set[str] = set()
        self._programs: set[str] = set()

    def consume_own(self, notice: Notification) -> bool:
        """Whether the kernel tells of nothing but what we have done ourselves."""
        return self._kernel.consume_own(notice)

    def mark(self, notice: Notification) -> None:
        """Remember where to look."""
        if isinstance(notice, VipsChanged):
            self._vips = True
            return
        self._sets |= notice.sets
        self._whole |= notice.whole
        self._unsure |= notice.unsure
        if notice.program:
            self._programs.add(notice.program)

    def suspect_servers(self) -> None:
        """A virtual server differs from the shadow: all are suspected."""
        self._servers = True

    @property
    def next_due(self) -> float:
        """When to repair, or to find that no program undoes repairs any more."""
        if not (self._vips or self._servers or self._whole or self._sets or self._unsure):
            return self._repair_backoff.calm_at
        return min(self._repair_backoff.next, self._repair_backoff.calm_at)

    def run(self, now: float) -> int:
        """Put right what others have changed. Raises NftError, KernelError.

        Where they were at work, IPVS, which tells nothing, may be next.
        """
        self._calm(now)
        if now < self.next_due:
            return 0
        self._repair()
        if not self._repair_backoff.is_contended:
            self._verifier.suspect(now)
        return 0

    def _repair(self) -> None:
        """Restore the rules; have VIPs and servers put back, and what was refused of the rules tried again.

        The rules first: the guard has to be there before a VIP is.
        """
        touched = Dirty()
        try:
            if self._unsure:
                self._sets |= self._kernel.rules.differing_sets()
            rules = self._whole or bool(self._sets)
            if rules:
                touched.update(self._kernel.rules.restore(self._sets, whole=self._whole))
            if self._vips:
                touched.update(self._kernel.verify_vips())
            if self._servers:
                touched.update(self._kernel.verify_servers())
        finally:
            self._applier.found_different(touched)
        if rules or touched:
            self._log_repair(touched, "all" if self._whole else sorted(self._sets))
        self._forget()

    def _log_repair(self, touched: Dirty, rules: str | list[str]) -> None:
        self._report.repaired(len(touched) + (1 if rules == "all" else len(rules)))
        was_contended, by = self._repair_backoff.is_contended, sorted(self._programs)
        self._repair_backoff.repaired(self._clock())
        if not was_contended:
            vips, servers = len(touched.vips), len(touched.servers)
            log.warning(messages.REPAIRED, rules=rules or None, vips=vips, servers=servers, by=by or None)
        if self._repair_backoff.is_contended and not was_contended:
            log.error(messages.CONTESTED, by=by or None)
            who = ", ".join(by) or "another program"
            self._report.contested(self._node, f"{who} keeps changing what ipvsproxy has made in the kernel")

    def _calm(self, now: float) -> None:
        """Notice that the state is no longer contested."""
        was_contended = self._repair_backoff.is_contended
        self._repair_backoff.look(now)
        if was_contended and not self._repair_backoff.is_contended:
            log.info("Other programs stopped undoing repairs")
            self._report.contested(self._node, "")
