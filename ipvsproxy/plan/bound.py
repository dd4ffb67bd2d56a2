"""The addresses that are VIPs because frontends ask for it, each with these frontends.

Deterministic: no I/O, no clock. Most VIPs have one frontend, which is then stored as it is: a set for each of
50,000 VIPs would take 10 MiB.
"""

from collections.abc import Iterator

from ipvsproxy.base.address import family
from ipvsproxy.plan.state import FrontendKey


class BoundAddresses:
    """VIPs by address; counted by family."""

    def __init__(self) -> None:
        self._frontends: dict[bytes, FrontendKey | set[FrontendKey]] = {}
        self.of_family = {4: 0, 6: 0}

    def __contains__(self, address: object) -> bool:
        return address in self._frontends

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._frontends)

    def frontends(self, address: bytes) -> frozenset[FrontendKey]:
        """Return the frontends for which an address is a VIP; none for an address that is not one."""
        found = self._frontends.get(address, ())
        return frozenset((found,)) if isinstance(found, FrontendKey) else frozenset(found)

    def add(self, key: FrontendKey) -> bool:
        """Have the address of a new frontend; return whether it was not a VIP before."""
        found = self._frontends.setdefault(key.address, key)
        if found is key:
            self.of_family[family(key.address)] += 1
            return True
        if isinstance(found, FrontendKey):
            self._frontends[key.address] = {found, key}
        else:
            found.add(key)
        return False

    def remove(self, key: FrontendKey) -> bool:
        """Forget a frontend that is there; return whether its address is no VIP any more."""
        found = self._frontends[key.address]
        if isinstance(found, set) and len(found) > 1:
            found.remove(key)
            return False
        del self._frontends[key.address]
        self.of_family[family(key.address)] -= 1
        return True
