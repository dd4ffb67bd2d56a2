"""Which IPVS schedulers the kernel has, and what a Service gets whose own one it has not.

Such a Service is served with the configured scheduler, and one sentence says so. Whether a scheduler is there is
known once the kernel has been asked (`reconciler.schedulers`); where the kernel is not asked, as in commands, all
are taken to be there. Deterministic, no I/O.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from ipvsproxy.plan.model import Service


class Schedulers:
    """What is known of each scheduler. `default` is the configured one, without which nothing runs."""

    def __init__(self, default: str) -> None:
        self._default = default
        self._known = {default: True}
        self._are_asked_for = False
        self.unknown: set[str] = set()

    @property
    def missing(self) -> frozenset[str]:
        """Those that the kernel does not have."""
        return frozenset(name for name, is_there in self._known.items() if not is_there)

    def ask(self) -> None:
        """From now on the kernel is asked about each scheduler before it is used."""
        self._are_asked_for = True

    def found(self, states: Mapping[str, bool]) -> frozenset[str]:
        """Record which schedulers are there; return those of which something else was known, or nothing."""
        changed = frozenset(name for name, is_there in states.items() if self._known.get(name) is not is_there)
        self._known.update(states)
        self.unknown.difference_update(states)
        return changed

    def usable(self, service: Service) -> tuple[Service, str, bool]:
        """Return a Service with a scheduler that is there, and what to say of its own one, empty for nothing.

        Last, whether it is known if that is there; if not, the Service is planned again soon.
        """
        name = service.scheduler
        if not name or self._known.get(name, not self._are_asked_for):
            return service, "", True
        if name not in self._known:
            self.unknown.add(name)
            return replace(service, scheduler=""), "", False
        complaint = (
            f"the kernel has no scheduler {name}, and the module ip_vs_{name} could not be loaded:"
            f" {self._default} is used until it is there"
        )
        return replace(service, scheduler=""), complaint, True
