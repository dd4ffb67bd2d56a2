"""The part that looks at one virtual server each second: IPVS sends no notifications, and so a flush is found."""

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
    """Looks at the next virtual server; at rules of other programs that matter to ours when some have changed."""

    def __init__(self, kernel: Kernel, repairer: Repairer, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._repairer = repairer
        self._others = self._untracked = False
        self._next = clock() + SAMPLE_SECONDS

    def mark(self, notice: Notification) -> None:
        """Remember that rules of others may have changed."""
        if not isinstance(notice, VipsChanged):
            self._untracked |= notice.untracked or notice.unsure
            self._others |= notice.forward or self._untracked

    @property
    def next_due(self) -> float:
        """Each second."""
        return self._next

    def run(self, now: float) -> int:
        """Suspect all virtual servers when one is not as we had left it."""
        self._next = now + SAMPLE_SECONDS
        # What cannot be read now is reported by the next verification.
        with suppress(KernelError):
            if self._kernel.sample():
                self._repairer.suspect_servers()
        if self._others:
            with suppress(NftError, KernelError):  # what was refused is tried again with the next sample
                self._kernel.rules.follow_others(anew=self._untracked)
                self._others = self._untracked = False
        return 0
