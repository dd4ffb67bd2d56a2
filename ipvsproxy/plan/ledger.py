"""The wanted state of the node: which Service holds which frontend, and what follows from that.

Frontends can be claimed by several Services (the same external IP and port): the oldest one holds it, by
creation time, then by name, whatever the order of events (contract 4.3). VIPs, hairpin entries and health-check
ports are shared, so they are counted. `replace` returns the names of kernel objects that may have changed; the
rest of the state is never looked at, so a change costs the same on a small node and on a big one.

Property: any order of `replace` calls ends in the state that only the last call for each Service would give.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ipvsproxy.address import family
from ipvsproxy.config import VipMode
from ipvsproxy.plan.rules import frontend_elements
from ipvsproxy.plan.state import Frontend, FrontendKey, Slot, Touched, Vip, VipForm

ROUTES_ABOVE = 8192
"""VIPs of a family from which `auto` uses routes: addresses on one link cost quadratic time in the kernel."""
ADDRESSES_BELOW = 4096
"""... and below which it goes back to addresses. The gap keeps a cluster at the border from going to and fro."""


class Owner(NamedTuple):
    """A Service in the order in which Services win frontends: age, then `namespace/name`."""

    created: str
    service: str


class Ledger:
    """Wanted frontends, VIPs and set elements of all Services."""

    def __init__(self, vip_mode: VipMode) -> None:
        self.frontends: dict[FrontendKey, Frontend] = {}
        self.elements: dict[Slot, str] = {}
        self._vip_mode = vip_mode
        self._vips: Counter[bytes] = Counter()
        self._vips_of_family: Counter[int] = Counter()
        self._forms = dict.fromkeys((4, 6), VipForm.ROUTE if vip_mode is VipMode.ROUTE else VipForm.ADDRESS)
        self._shares: Counter[Slot] = Counter()
        self._claims: dict[FrontendKey, dict[Owner, Frontend]] = {}
        self._owned: dict[str, tuple[Owner, frozenset[FrontendKey]]] = {}

    def replace(self, owner: Owner, frontends: Mapping[FrontendKey, Frontend]) -> Touched:
        """Set the frontends of one Service (none: it is gone) and name what that may change."""
        touched = Touched()
        known, old_keys = self._owned.pop(owner.service, (owner, frozenset()))
        for key in old_keys - frontends.keys() if known == owner else old_keys:
            self._withdraw(key, known)
        for key, frontend in frontends.items():
            self._claims.setdefault(key, {})[owner] = frontend
        if frontends:
            self._owned[owner.service] = (owner, frozenset(frontends))
        for key in old_keys | frontends.keys():
            self._settle(key, touched)
        self._choose_forms(touched)
        return touched

    def forget(self, service: str) -> Touched:
        """Remove all frontends of a Service that may or may not be known."""
        owner, _ = self._owned.get(service, (Owner("", service), frozenset()))
        return self.replace(owner, {})

    def owner(self, key: FrontendKey) -> str:
        """Return `namespace/name` of the Service that holds a frontend."""
        return min(self._claims[key]).service

    def losers(self, key: FrontendKey) -> list[str]:
        """Return the Services that claim a frontend another one holds."""
        return [owner.service for owner in sorted(self._claims.get(key, ()))[1:]]

    def conflicts(self, service: str) -> Iterator[FrontendKey]:
        """Yield the frontends that a Service claims and does not hold."""
        owner, keys = self._owned.get(service, (None, frozenset()))
        return (key for key in keys if owner != min(self._claims[key]))

    def vip(self, address: bytes) -> Vip | None:
        """Return a VIP in the form it should have, or None when it is not wanted."""
        return Vip(address, self._forms[family(address)]) if address in self._vips else None

    def set_fixed(self, elements: Mapping[Slot, str], previous: Mapping[Slot, str]) -> Touched:
        """Replace elements that belong to the node and to no Service."""
        for slot in previous.keys() - elements.keys():
            del self.elements[slot]
        self.elements.update(elements)
        return Touched(slots={*previous, *elements})

    def everything(self) -> Touched:
        """Name all there is."""
        return Touched(set(self.frontends), set(self._vips), set(self.elements))

    def _withdraw(self, key: FrontendKey, owner: Owner) -> None:
        claims = self._claims[key]
        del claims[owner]
        if not claims:
            del self._claims[key]

    def _settle(self, key: FrontendKey, touched: Touched) -> None:
        """Make the oldest claim the wanted one."""
        claims = self._claims.get(key)
        new = claims[min(claims)] if claims else None
        old = self.frontends.get(key)
        if old == new:
            return
        touched.servers.add(key)
        if new is not None:
            self.frontends[key] = new
            self._acquire(new, touched)
        if old is not None:
            self._release(old, touched)
        if new is None:
            del self.frontends[key]

    def _acquire(self, frontend: Frontend, touched: Touched) -> None:
        for slot, value in frontend_elements(frontend):
            self._shares[slot] += 1
            self.elements[slot] = value
            touched.slots.add(slot)
        if frontend.bind:
            address = frontend.key.address
            self._vips[address] += 1
            self._vips_of_family[family(address)] += self._vips[address] == 1
            touched.vips.add(address)

    def _release(self, old: Frontend, touched: Touched) -> None:
        for slot, _ in frontend_elements(old):
            self._shares[slot] -= 1
            touched.slots.add(slot)
            if not self._shares[slot]:
                del self._shares[slot]
                del self.elements[slot]
        if old.bind:
            address = old.key.address
            self._vips[address] -= 1
            touched.vips.add(address)
            if not self._vips[address]:
                del self._vips[address]
                self._vips_of_family[family(address)] -= 1

    def _choose_forms(self, touched: Touched) -> None:
        """In mode auto, change the form of all VIPs of a family when their number calls for it."""
        if self._vip_mode is not VipMode.AUTO:
            return
        for number, form in self._forms.items():
            count = self._vips_of_family[number]
            too_many = form is VipForm.ADDRESS and count > ROUTES_ABOVE
            few_again = form is VipForm.ROUTE and count < ADDRESSES_BELOW
            if too_many or few_again:
                self._forms[number] = VipForm.ROUTE if too_many else VipForm.ADDRESS
                touched.vips.update(address for address in self._vips if family(address) == number)
