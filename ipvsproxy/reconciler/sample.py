"""The part that looks at one virtual server each second: IPVS sends no notifications, and so a flush is found.

And at rules of other programs that matter to ours when some have changed: at once where it matters, but not twice
in a second.
"""

import math
from collections.abc import Callable
from contextlib import suppress

from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.notification import Notification, VipsChanged
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.repair import Repairer
from nft import NftError

SAMPLE_SECONDS = 1.0


class Sampler(Part):
    """Looks at the next virtual server; at rules of other programs that matter to ours when some have changed.

    One that is new and keeps packets from conntrack is followed at once: until our rules for it are loaded, such
    packets to the short path reach ports of the host. A program may add such rules all the time.
    """

    def __init__(self, kernel: Kernel, repairer: Repairer, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._repairer = repairer
        self._others = self._untracked = False
        self._next = clock() + SAMPLE_SECONDS
        self._may_look_at = -math.inf

    def mark(self, notice: Notification) -> None:
        """Remember that rules of others may have changed."""
        if not isinstance(notice, VipsChanged):
            self._untracked |= notice.untracked or notice.unsure
            self._others |= notice.forward or self._untracked

    @property
    def next_due(self) -> float:
        """Each second, and for what another program keeps from conntrack."""
        return min(self._next, self._may_look_at) if self._untracked else self._next

    def run(self, now: float) -> int:
        """Suspect all virtual servers when one is not as we had left it; look at rules of others."""
        # What cannot be read now is reported by the next verification.
        with suppress(KernelError):
            if now >= self._next:
                self._next = now + SAMPLE_SECONDS
                if self._kernel.sample():
                    self._repairer.suspect_servers()
        if self._others:
            self._may_look_at = now + SAMPLE_SECONDS
            with suppress(NftError, KernelError):  # what was refused is tried again with the next sample
                self._kernel.rules.follow_others(anew=self._untracked)
                self._others = self._untracked = False
        return 0
