"""Putting right at once what others have changed, as the kernel tells of it, and never fighting for long.

In: notices that are not about our own work, and a sample of one virtual server each second, since IPVS tells
nothing: a flush is found by the first one. Out: a restored ruleset, and the names of VIPs and servers
that differ, which the loop's next apply puts back. Belongs to the loop's thread.
"""

from collections.abc import Callable
from contextlib import suppress

import structlog

from ipvsproxy.base import messages
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.notification import Notification, VipsChanged
from ipvsproxy.plan.repair_backoff import RepairBackoff
from ipvsproxy.plan.state import Dirty
from nft import NftError

RETRY_SECONDS = 1.0
SAMPLE_SECONDS = 1.0

log = structlog.get_logger()


class Repairer:
    """What others are suspected to have changed. `longest` is the longest wait while contested, in seconds."""

    def __init__(
        self, kernel: Kernel, report: Report, clock: Callable[[], float], longest: float, node: str
    ) -> None:
        self._kernel = kernel
        self._report = report
        self._clock = clock
        self._node = node
        self._repair_backoff = RepairBackoff(longest)
        self._not_before = 0.0
        self.next_sample = clock() + SAMPLE_SECONDS
        self._forward = False
        self._forget()

    def _forget(self) -> None:
        self._vips = self._servers = self._whole = self._unsure = False
        self._sets: set[str] = set()
        self._programs: set[str] = set()

    def mark(self, notice: Notification) -> None:
        """Remember where to look."""
        if isinstance(notice, VipsChanged):
            self._vips = True
            return
        self._sets |= notice.sets
        self._whole |= notice.whole
        self._unsure |= notice.unsure
        self._forward |= notice.forward or notice.unsure
        if notice.program:
            self._programs.add(notice.program)

    def sample(self) -> None:
        """Look at a virtual server, if it is time to, and suspect all when it differs from the shadow.

        Also at the FORWARD chains of iptables-nft, if others have changed rules there.
        """
        now = self._clock()
        if now < self.next_sample:
            return
        self.next_sample = now + SAMPLE_SECONDS
        # What cannot be read now is logged by the next verification.
        with suppress(KernelError):
            self._servers |= self._kernel.sample()
        if self._forward:
            self._forward = False
            with suppress(NftError, KernelError):
                self._kernel.rules.mark_replies()

    @property
    def next(self) -> float | None:
        """When to repair, None while there is nothing to."""
        if not (self._vips or self._servers or self._whole or self._sets or self._unsure):
            return None
        return max(self._repair_backoff.next, self._not_before)

    @property
    def is_contended(self) -> bool:
        """Whether others undo what is repaired."""
        return self._repair_backoff.is_contended

    def repair(self) -> Dirty:
        """Restore the rules; return VIPs and servers that have to be put back, and what was refused of the rules.

        Raises NftError, KernelError.

        The rules first: the guard has to be there before a VIP is. What fails is tried again after a while.
        """
        self._not_before = self._clock() + RETRY_SECONDS
        if self._unsure:
            self._sets |= self._kernel.rules.differing_sets()
        touched, rules = Dirty(), self._whole or bool(self._sets)
        if rules:
            touched.update(self._kernel.rules.restore(self._sets, whole=self._whole))
        if self._vips:
            touched.update(self._kernel.verify_vips())
        if self._servers:
            touched.update(self._kernel.verify_servers())
        if rules or touched:
            self._log_repair(touched, "all" if self._whole else sorted(self._sets))
        self._forget()
        self._not_before = 0.0
        return touched

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

    def calm(self) -> None:
        """Notice that the state is no longer contested."""
        was_contended = self._repair_backoff.is_contended
        self._repair_backoff.look(self._clock())
        if was_contended and not self._repair_backoff.is_contended:
            log.info("Other programs stopped undoing repairs")
            self._report.contested(self._node, "")
