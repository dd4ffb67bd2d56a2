"""Which IPVS schedulers and persistence engines the kernel has, and what a Service gets whose own it has not.

Such a Service is served with the configured scheduler, or with affinity by addresses, and one sentence reports it;
one that goes by the short path alone needs none.
Each is known by the name of its module without `ip_vs_`: mh, pe_sip. Whether it is there is known once the kernel
has been asked (`reconciler.schedulers`); where it is not asked, as in commands, all are taken to be there.
Deterministic, no I/O.
"""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from msgspec.structs import replace

from ipvsproxy.config import DataPath
from ipvsproxy.plan.model import Service
from ipvsproxy.plan.state import ServerState

SCHEDULER, ENGINE = "scheduler", "pe_"
"""A field of Services; and what names of engines begin with."""


class Schedulers:
    """What is known of each scheduler. `default` is the configured one, without which nothing runs."""

    def __init__(self, default: str) -> None:
        self.default = default
        self._known = {default: True}
        self._are_asked_for = False
        self.unknown: set[str] = set()

    @property
    def known(self) -> frozenset[str]:
        """Those of which it is known whether the kernel has them."""
        return frozenset(self._known)

    @property
    def missing(self) -> frozenset[str]:
        """Those that the kernel does not have."""
        return frozenset(name for name, is_there in self._known.items() if not is_there)

    def ask(self) -> None:
        """From now on the kernel is asked about each scheduler before it is used."""
        self._are_asked_for = True

    def only(self, names: AbstractSet[str]) -> None:
        """Forget what is missing, or not known, and not among those that Services ask for."""
        for name in self.missing - names:
            del self._known[name]
        self.unknown &= names

    def found(self, states: Mapping[str, bool]) -> frozenset[str]:
        """Record which schedulers are there; return those of which something else was known, or nothing."""
        changed = frozenset(name for name, is_there in states.items() if self._known.get(name) is not is_there)
        self._known.update(states)
        self.unknown.difference_update(states)
        return changed

    def lacks_some(self, service: Service) -> bool:
        """Whether a Service asks for one that is not there, or of which that is not known yet."""
        return not all(self._known.get(module, not self._are_asked_for) for module in modules_of(service))

    def usable(self, service: Service) -> tuple[Service, list[str], bool]:
        """Return a Service with a scheduler and an engine that are there, and what to report about its own ones.

        Last, whether it is known if those are there; if not, the Service is planned again soon.
        """
        complaints, is_known = [], True
        for field, module in _wishes(service):
            if self._known.get(module, not self._are_asked_for):
                continue
            if module in self._known:
                complaints.append(self._complaint(field, module))
            else:
                self.unknown.add(module)
                is_known = False
            # Most that ask for one go by IPVS; the short path until it is there would be two changes of the path.
            service = replace(service, **{field: "", "data_path": DataPath.IPVS.value})
        return service, complaints, is_known

    def _complaint(self, field: str, module: str) -> str:
        what, instead = f"scheduler {module}", f"{self.default} is used"
        if field != SCHEDULER:
            what, instead = f"persistence engine {module.removeprefix(ENGINE)}", "affinity is by addresses"
        return (
            f"the kernel has no {what}, and the module ip_vs_{module} could not be loaded:"
            f" {instead} until it is there"
        )


def modules_of(service: Service) -> Iterator[str]:
    """Yield the schedulers and engines that a Service asks for."""
    return (module for _, module in _wishes(service))


def in_use(servers: Iterable[ServerState]) -> set[str]:
    """Return the schedulers and engines that virtual servers have: those are there."""
    found = set()
    for state in servers:
        found.add(state.server.scheduler)
        if state.server.engine:
            found.add(f"{ENGINE}{state.server.engine}")
    return found


def _wishes(service: Service) -> Iterator[tuple[str, str]]:
    """Yield the field of a Service that names a module, and the module."""
    if service.scheduler:
        yield SCHEDULER, service.scheduler
    if service.affinity_engine:
        yield "affinity_engine", f"{ENGINE}{service.affinity_engine}"
